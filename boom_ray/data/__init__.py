"""The data: corpus, bags, global batches, and what one batch looks like to the loss."""

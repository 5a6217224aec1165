"""The embedding model: encoder, tokenizer, published model directory, and model card."""

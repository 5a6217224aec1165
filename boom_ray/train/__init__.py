"""Training: fine-tunes the base model on every bag with Ray Train and DeepSpeed; see README.md."""

"""Training: the loss, the step, and the bags that Ray Train runs side by side."""

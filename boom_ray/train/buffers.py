"""Sizes of the buffers of a step, for the step itself and for the planner; no torch."""

REDUCE_BUCKET = 50_000_000  # gradient elements that ZeRO 1 and 2 reduce at once, while the backward pass runs
MAX_LOGITS = 2**27  # logits of one term of the loss: 512 MiB in float32, of which autograd keeps four copies

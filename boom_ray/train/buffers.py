"""Sizes of the buffers and passes of a step, for the step itself and for the planner; no torch."""

REDUCE_BUCKET = 50_000_000  # gradient elements that ZeRO 1 and 2 reduce at once, while the backward pass runs
CHUNK_TOKENS_ON_CPU = 16384  # `chunk_tokens: auto` there, where more tokens at once gain nothing
USED_MEMORY = 0.85  # of the free memory of a GPU: chunks differ in shape, and the allocator leaves gaps
LEAST_CHUNK_TOKENS, MOST_CHUNK_TOKENS = 1 << 13, 1 << 19  # on GPUs
MAX_LOGITS = 2**27  # logits of one term of the loss: 512 MiB in float32, of which autograd keeps four copies

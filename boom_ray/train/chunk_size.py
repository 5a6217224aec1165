"""The size of a forward pass: with `chunk_tokens: auto`, what the memory of the GPU allows.

The memory of activations grows with the tokens of a pass. Two passes of different sizes, forward and
backward, measure by how much; what the model and the optimizer occupy is allocated already.
"""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from boom_ray.model.encoder import Encoder
from boom_ray.model.tokens import Tokens
from boom_ray.train.buffers import LEAST_CHUNK_TOKENS, MAX_LOGITS, MOST_CHUNK_TOKENS, USED_MEMORY

STEP = 1024  # results are multiples of it
PROBES = (4 * STEP, 8 * STEP)  # tokens of the two passes
GRADIENT_BYTES = 6  # of a trained weight: in half precision, and summed in float32


def measured_chunk_tokens(encoder: Encoder, longest: int) -> int:
    """The most tokens of a chunk that every rank can compute. Runs on every rank, on GPUs.

    Args:
        encoder: In its engine, whose optimizer has allocated its memory.
        longest: Tokens of the longest text.
    """
    device = encoder.device
    peaks = [_peak_bytes(encoder, tokens, longest) for tokens in PROBES]
    torch.cuda.empty_cache()  # what the passes have used is free again
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)  # of this rank, with ZeRO 3
    reserved = GRADIENT_BYTES * trained + 4 * 4 * MAX_LOGITS
    tokens = torch.tensor(fitting_tokens(peaks, torch.cuda.mem_get_info(device)[0] - reserved), device=device)
    dist.all_reduce(tokens, dist.ReduceOp.MIN)
    return int(tokens)


def fitting_tokens(peaks: list[float], free: float) -> int:
    """Tokens whose activations fill the free memory, by the line through the measured peaks.

    Args:
        peaks: Bytes of a pass of each of `PROBES` tokens.
        free: Bytes that are available to a pass.

    Returns:
        A multiple of `STEP` within `LEAST_CHUNK_TOKENS` and `MOST_CHUNK_TOKENS`.
    """
    small, large = PROBES
    per_token = max((peaks[1] - peaks[0]) / (large - small), 1.0)
    fixed = max(0.0, peaks[0] - per_token * small)
    tokens = int((USED_MEMORY * free - fixed) / per_token)
    return min(max(tokens // STEP * STEP, LEAST_CHUNK_TOKENS), MOST_CHUNK_TOKENS)


def _peak_bytes(encoder: Encoder, tokens: int, longest: int) -> float:
    """The most bytes that a pass allocates."""
    torch.cuda.reset_peak_memory_stats(encoder.device)
    before = torch.cuda.memory_allocated(encoder.device)
    run_pass(encoder, tokens, longest)
    return torch.cuda.max_memory_allocated(encoder.device) - before


def run_pass(encoder: Encoder, tokens: int, longest: int) -> torch.Tensor:
    """Run a forward and backward pass through all layers that leaves no gradient at a weight.

    Args:
        tokens: Tokens of the pass, in texts of `longest`.

    Returns:
        The gradient of the embeddings of the tokens, in the shape of their batch.
    """
    count = -(-tokens // longest)
    ids = np.full(count * longest, encoder.tokenizer.pad_token_id or 0, np.int32)
    lengths = np.full(count, longest)
    batch = encoder.collate(Tokens(ids, lengths, np.zeros_like(lengths)))
    embedded: list[torch.Tensor] = []
    embeddings: Any = encoder.transformer.get_input_embeddings()
    hook = embeddings.register_forward_hook(
        lambda module, inputs, output: embedded.append(output.requires_grad_())
    )
    try:
        vectors = encoder(*batch)
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(vectors[:, 0].sum(), embedded)
    return gradient

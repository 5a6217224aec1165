"""Statistics of a step: similarity of the embeddings, padding, and floating point operations."""

import time

import torch
from torch import Tensor, nn


def mean_similarity(embeddings: Tensor) -> float:
    """Mean cosine of all pairs of different rows of a [n, d] matrix of unit vectors; 0 for a single row.

    Linear in n: the sum over all pairs is the squared norm of the sum of the rows.
    """
    count = len(embeddings)
    total = embeddings.sum(0, dtype=torch.float64).square().sum().item()
    return (total - count) / max(1, count * (count - 1))


def flops_per_token(model: nn.Module) -> int:
    """Floating point operations of a forward and backward pass per token.

    Six per weight of a matrix product (arXiv 2001.08361, §2.1), four if the weight is frozen; attention
    scores are not counted.
    """
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    weights = [weight for weight in model.parameters() if id(weight) not in embeddings]
    return sum((6 if weight.requires_grad else 4) * weight.numel() for weight in weights)


def measure_flops(device: torch.device, dtype: torch.dtype, size: int = 4096, repeats: int = 20) -> float:
    """Floating point operations per second of a square matrix product on a device."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def seconds(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            product = left @ right
        product[0, 0].item()  # waits for the device
        return time.perf_counter() - started

    seconds(1)  # the first product includes the setup of the library
    return repeats * 2 * size**3 / seconds(repeats)

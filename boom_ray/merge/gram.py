"""Merging lives in a Gram matrix.

Let W_1 … W_M be one tensor of the M models, flattened, and G_ij = <W_i, W_j>. Every method whose result is
a linear combination of its inputs needs the tensors twice: once to accumulate G, once to combine them with
M coefficients that are a function of G alone. Both passes go block by block, so memory is M blocks,
whatever the tensor's size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 1 << 16  # elements; M blocks in float64 stay in a core's cache


def accumulate(gram: Tensor, pieces: Sequence[Tensor], base: Tensor | None = None) -> None:
    """Add the inner products of one piece of each model to `gram`, in place.

    Args:
        gram: [M, M] float64.
        pieces: M tensors of [n], any floating dtype: the same slice of each model's tensor.
        base: [n]; the products are then those of the differences to it.
    """
    for start in range(0, len(pieces[0]), BLOCK):
        block = _block(pieces, base, start)
        gram += block @ block.T


def combine(
    pieces: Sequence[Tensor], coefficients: Tensor, dtype: torch.dtype, base: Tensor | None = None
) -> Tensor:
    """The linear combination of one piece of each model, computed in float64 and rounded at the end.

    torch rounds float64 to a 16-bit dtype by way of float32, so that the error can exceed half a unit in the
    last place by half a unit of float32.

    Args:
        pieces: M tensors of [n].
        coefficients: [M] float64.
        dtype: Of the result.
        base: [n]; the result is then the base plus the combination of the differences to it.

    Returns:
        [n] of `dtype`.
    """
    result = torch.empty(len(pieces[0]), dtype=dtype)
    for start in range(0, len(result), BLOCK):
        combined = coefficients @ _block(pieces, base, start)
        if base is not None:
            combined += base[start : start + BLOCK]
        result[start : start + BLOCK] = combined
    return result


def _block(pieces: Sequence[Tensor], base: Tensor | None, start: int) -> Tensor:
    """[M, at most BLOCK] float64."""
    block = torch.stack([piece[start : start + BLOCK].double() for piece in pieces])
    return block if base is None else block.sub_(base[start : start + BLOCK])

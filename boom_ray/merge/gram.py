"""Merging lives in a Gram matrix.

Let W_1 … W_M be one tensor of the M models, flattened, and G_ij = <W_i, W_j>. Every method whose result is
a linear combination of its inputs needs the tensors twice: once to accumulate G, once to combine them with
M coefficients that are a function of G alone. Both passes go block by block through a core's cache, so memory
is what the caller keeps, whatever the tensor's size.

With a base model, the W_i are the differences to it, and it is added to the result with coefficient 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 1 << 15  # elements; a block of half a dozen models stays in a core's second-level cache
SAFE = (1e-24, 1e30)  # squared norms whose parts float32 neither drops nor overflows
CANCELLING = 1e-2  # squared length of a mean direction below which float32 products decide too few digits


def work_dtype(output: torch.dtype) -> torch.dtype:
    """The dtype a merge is computed in: one precision above the output's, so that it is rounded once."""
    return torch.float32 if output.itemsize < 4 else torch.float64


def gather(pieces: Sequence[Tensor], num_models: int, target: Tensor) -> Tensor:
    """Convert one piece of each model to the dtype of `target`, and multiply them with each other.

    Args:
        pieces: Tensors of [n], any floating dtype: the same slice of each model's tensor, and of the base's
            behind them if differences to it are merged.
        num_models: M; `len(pieces)`, or one less with a base.
        target: [len(pieces), n] float32 or float64, filled with the pieces, the models' less the base's.

    Returns:
        [M, M] float64: the Gram matrix of this piece, to be added to those of the others. Products are
        summed in the dtype of `target` over `BLOCK` elements, and in float64 from there on.
    """
    products = torch.zeros(num_models, num_models, dtype=torch.float64, device=target.device)
    for start in range(0, target.shape[1], BLOCK):
        block = target[:, start : start + BLOCK]
        for row, piece in zip(block, pieces, strict=True):
            row.copy_(piece[start : start + BLOCK])
        models = block[:num_models]
        if len(pieces) > num_models:
            models -= block[num_models]
        products += models @ models.T
    return products


def combine(target: Tensor, coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """The linear combination of gathered pieces, rounded once to `dtype`.

    Args:
        target: [P, n] as `gather` left it.
        coefficients: [M] float64; the base, if there is one, is added as it is.

    Returns:
        [n] of `dtype`.
    """
    factors = torch.ones(len(target), dtype=target.dtype, device=target.device)
    factors[: len(coefficients)] = coefficients
    result = torch.empty(target.shape[1], dtype=dtype, device=target.device)
    for start in range(0, len(result), BLOCK):
        result[start : start + BLOCK] = factors @ target[:, start : start + BLOCK]
    return result


def is_certain(products: Tensor, weights: Tensor) -> bool:
    """Whether a Gram matrix of float32 products decides the coefficients of any method.

    It does not if squares may have left the range of float32, or if the weighted directions nearly cancel.

    Args:
        products: [M, M] float64.
        weights: [M] float64 with sum 1.
    """
    squares = products.diagonal()
    if not bool(((squares > SAFE[0]) & (squares < SAFE[1])).all()):
        return False
    scaled = weights / squares.sqrt()
    return bool(scaled @ products @ scaled > CANCELLING * weights.abs().sum() ** 2)

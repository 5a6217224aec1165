"""Merging lives in a Gram matrix.

Let W_1 … W_M be one tensor of the M models, flattened, and G_ij = <W_i, W_j>. Every method whose result is
a linear combination of its inputs needs the tensors twice: once to accumulate G, once to combine them with
M coefficients that are a function of G alone. Both passes go block by block through a core's cache, so memory
is what the caller keeps, whatever the tensor's size.

With a base model, the W_i are the differences to it, and it is added to the result with coefficient 1.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

BLOCK = 1 << 15  # elements; a block of half a dozen models stays in a core's second-level cache
SAFE = (1e-24, 1e30)  # squared norms whose parts float32 neither drops nor overflows
CANCELLING = 1e-2  # squared length of a mean direction below which float32 products decide too few digits

#: The same range of one tensor in each of P models (the base's last): [P, n], or P times [n] of any dtypes.
Pieces = Tensor | Sequence[Tensor]


def work_dtype(output: torch.dtype) -> torch.dtype:
    """The dtype a merge is computed in: one precision above the output's, so that it is rounded once."""
    return torch.float32 if output.itemsize < 4 else torch.float64


def blocks(
    pieces: Pieces, dtype: torch.dtype, centred: bool, device: torch.device | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Pieces as numbers to calculate with, block by block.

    They are converted anew for every pass: in a core's cache that costs less than to keep them converted in
    memory, which is twice the bytes to write and to read.

    Args:
        pieces: Of M models and a base.
        dtype: float32 or float64.
        centred: Whether the base, the last row, is taken off all others.

    Yields:
        The first element of a block, and [P, at most BLOCK] of `dtype`, valid until the next.
    """
    count = len(pieces[0])
    memory = torch.empty(len(pieces), min(BLOCK, count), dtype=dtype, device=device)
    for start in range(0, count, BLOCK):
        block = memory[:, : min(BLOCK, count - start)]
        if isinstance(pieces, Tensor):
            block.copy_(pieces[:, start : start + BLOCK])
        else:
            for row, piece in zip(block, pieces, strict=True):
                row.copy_(piece[start : start + BLOCK])
        if centred:
            block[:-1] -= block[-1]
        yield start, block


def accumulate(products: Tensor, pieces: Pieces, dtype: torch.dtype) -> None:
    """Add the inner products of pieces to a Gram matrix, in place.

    Products are summed in `dtype` over a block, and in float64 from there on.

    Args:
        products: [M, M] float64.
        pieces: Of M models, or of M and a base whose differences are meant.
    """
    num_models = len(products)
    of_block = torch.empty(num_models, num_models, dtype=dtype, device=products.device)
    for _, block in blocks(pieces, dtype, len(pieces) > num_models, products.device):
        models = block[:num_models]
        torch.mm(models, models.T, out=of_block)
        products += of_block


def combine(pieces: Pieces, coefficients: Tensor, work: torch.dtype, output: torch.dtype) -> Tensor:
    """The linear combination of pieces, rounded once.

    Args:
        pieces: Of M models, or of M and a base. Then the base plus the combination of the differences to it
            is meant, which is the combination of all with 1 - sum(coefficients) for the base.
        coefficients: [M] float64.
        work: float32 or float64, to calculate in.
        output: Of the result.

    Returns:
        [n] of `output`.
    """
    if len(pieces) > len(coefficients):
        coefficients = torch.cat([coefficients, 1 - coefficients.sum(0, keepdim=True)])
    factors = coefficients.to(work)
    result = torch.empty(len(pieces[0]), dtype=output, device=factors.device)
    for start, block in blocks(pieces, work, centred=False, device=factors.device):
        result[start : start + BLOCK] = torch.mv(block.T, factors)
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

"""Gram matrices: inner products of the models, and the linear combinations that they determine.

Let W_1 … W_M be one tensor of the M models, flattened, and G_ij = <W_i, W_j>. Every method whose result is
a linear combination of its inputs needs the tensors twice: once to accumulate G, once to combine them with
M coefficients that are a function of G alone. Both passes process blocks that fit into the cache of a CPU
core, so memory does not depend on the size of the tensor.

With a base model, the W_i are task vectors (differences to the base), and the base is added to the result.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Elements of a block. In float32, a block of six models takes 768 KiB: it stays in the second-level cache of
# a core between its conversion, the subtraction of the base and the product. Larger blocks go back to memory
# for every one of these steps; smaller ones pay more for the calls of torch than for the arithmetic.
BLOCK = 1 << 15
SAFE = (1e-24, 1e30)  # squared norms whose parts neither underflow nor overflow in float32
# Coefficients are large where one input is shorter than the others: their products nearly cancel the base's.
LARGE = 8.0  # sum of magnitudes above which float32 products lose too many digits, or overflow
CANCELLING = 1e-2  # squared length of a mean direction below which float32 products lose too many digits

#: The same range of one tensor in P models (the base model last): [P, n], or P times [n] of any dtypes.
Pieces = Tensor | Sequence[Tensor]


def work_dtype(output: torch.dtype) -> torch.dtype:
    """The dtype a merge is computed in: one precision above the output's, so that it is rounded once."""
    return torch.float32 if output.itemsize < 4 else torch.float64


def blocks(pieces: Pieces, dtype: torch.dtype, centred: bool) -> Iterator[tuple[int, Tensor]]:
    """Pieces converted to the working dtype, block by block.

    Each pass converts them again: inside the cache this is cheaper than keeping converted copies in memory,
    which doubles the bytes that are written and read.

    Args:
        pieces: The models, and the base model last if `centred`.
        dtype: float32 or float64.
        centred: Whether to subtract the base, the last row, from all other rows.

    Yields:
        The first element of a block, and [P, at most BLOCK] of `dtype`, valid until the next block.
    """
    count = len(pieces[0])
    memory = torch.empty(len(pieces), min(BLOCK, count), dtype=dtype, device=pieces[0].device)
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

    Products are computed and summed in `dtype` within a block. Blocks are summed in float64: a tensor has up
    to 10^9 elements, and a float32 sum of that many terms keeps only a few digits, too few for the angle
    between two fine-tuned models.

    Args:
        products: [M, M] float64, on the device of the pieces.
        pieces: M models, or M models and a base that is subtracted from them.
    """
    num_models = len(products)
    of_block = torch.empty(num_models, num_models, dtype=dtype, device=products.device)
    for _, block in blocks(pieces, dtype, centred=len(pieces) > num_models):
        models = block[:num_models]
        torch.mm(models, models.T, out=of_block)
        products += of_block


def combine(pieces: Pieces, coefficients: Tensor, work: torch.dtype, output: torch.dtype) -> Tensor:
    """The linear combination of pieces, rounded once.

    Args:
        pieces: M models, or M models and a base. With a base, the result is the base plus the combination of
            the task vectors: the combination of all P pieces, where the base has 1 - sum(coefficients).
        coefficients: [M] float64.
        work: float32 or float64, the dtype to compute in; float64 in any case if coefficients are `LARGE`.
        output: Dtype of the result.

    Returns:
        [n] of `output`.
    """
    if len(pieces) > len(coefficients):
        coefficients = torch.cat([coefficients, 1 - coefficients.sum(0, keepdim=True)])
    work = dtype_for(coefficients, work)
    factors = coefficients.to(work)
    result = torch.empty(len(pieces[0]), dtype=output, device=pieces[0].device)
    for start, block in blocks(pieces, work, centred=False):
        result[start : start + BLOCK] = torch.mv(block.T, factors)
    return result


def dtype_for(coefficients: Tensor, work: torch.dtype) -> torch.dtype:
    """The dtype to combine in: float64 if coefficients are `LARGE`, else `work`."""
    return torch.float64 if coefficients.abs().sum() > LARGE else work


def is_certain(products: Tensor, weights: Tensor) -> bool:
    """Whether a Gram matrix of float32 products is accurate enough for the coefficients of every method.

    It is not if squares may have left the range of float32, or if the weighted directions nearly cancel.

    Args:
        products: [M, M] float64.
        weights: [M] float64 with sum 1.
    """
    squares = products.diagonal()
    if not bool(((squares > SAFE[0]) & (squares < SAFE[1])).all()):
        return False
    scaled = weights / squares.sqrt()
    return bool(scaled @ products @ scaled > CANCELLING * weights.abs().sum() ** 2)

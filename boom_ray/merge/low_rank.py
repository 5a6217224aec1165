"""Task vectors that are products of LoRA factors: their Gram matrix and their combination, never dense.

Model i adds s_i B_i A_i to one tensor of the base model, with B_i [out, r_i] and A_i [r_i, in]. Then

    <s_i B_i A_i, s_j B_j A_j> = s_i s_j sum((B_iᵀ B_j) ∘ (A_i A_jᵀ))
    Σ c_i s_i B_i A_i = [c_1 s_1 B_1 … c_M s_M B_M] [A_1; …; A_M]

The first has r_i r_j numbers instead of out times in, and the second is one product of rank Σ r_i.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boom_ray.merge.tensor_reader import TensorReader


@dataclass(frozen=True)
class Factors:
    """The factors of one tensor in M models, stacked; R = Σ r_i.

    Attributes:
        b: [out, R] float64, the s_i B_i side by side.
        a: [R, in] float64, the A_i one below the other.
        members: [R, M] float64, 1 where a factor belongs to a model.
    """

    b: Tensor
    a: Tensor
    members: Tensor

    @classmethod
    def read(cls, readers: Sequence[TensorReader], name: str) -> "Factors":
        """The factors of a tensor; a model that does not adapt it has none.

        Args:
            readers: Of the M models, of which one or more adapt the tensor.
        """
        found = {index: r.factors(name) for index, r in enumerate(readers) if name in r.model.adapter}
        scales = [readers[index].model.adapter[name].scale for index in found]
        owners = torch.tensor([index for index, (a, _) in found.items() for _ in a])
        return cls(
            b=torch.cat([b.double() * s for (_, b), s in zip(found.values(), scales, strict=True)], 1),
            a=torch.cat([a.double() for a, _ in found.values()]),
            members=torch.nn.functional.one_hot(owners, len(readers)).double(),
        )

    @property
    def rank(self) -> int:
        """The sum of the ranks of all models."""
        return len(self.a)

    def gram(self) -> Tensor:
        """[M, M] float64 inner products of the task vectors."""
        products = (self.b.T @ self.b) * (self.a @ self.a.T)
        return self.members.T @ products @ self.members

    def combined(self, coefficients: Tensor) -> Tensor:
        """[out, R] float64, b times the coefficients [M] of the models: times `a`, their combination."""
        return self.b * (self.members @ coefficients)


@dataclass(frozen=True)
class Truncated:
    """A product of bounded rank in place of another.

    Attributes:
        b: [out, rank] float64.
        a: [rank, in] float64.
        squared_norm: Squared Frobenius norm of the other product.
        squared_error: Squared Frobenius norm of the difference.
    """

    b: Tensor
    a: Tensor
    squared_norm: float
    squared_error: float


def truncate(b: Tensor, a: Tensor, rank: int) -> Truncated:
    """The closest product of two matrices of a rank (Eckart and Young), from the SVD of an R by R core.

    With b = Q_b R_b and aᵀ = Q_a R_a, b a = Q_b (R_b R_aᵀ) Q_aᵀ.

    Args:
        b: [out, R] float64.
        a: [R, in] float64.
        rank: Rank of the result, which is padded with zeros if it exceeds R; then the product is the same.
    """
    total = len(a)
    squared_norm = ((b.T @ b) * (a @ a.T)).sum().item()
    if rank >= total:
        padding = (0, rank - total)
        pad = torch.nn.functional.pad
        return Truncated(pad(b, padding), pad(a, (0, 0, *padding)), squared_norm, 0.0)
    (q_b, r_b), (q_a, r_a) = torch.linalg.qr(b), torch.linalg.qr(a.T)
    left, values, right = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    roots = values[:rank].sqrt()
    truncated = truncate(q_b @ (left[:, :rank] * roots), (right[:rank] * roots[:, None]) @ q_a.T, rank)
    return Truncated(truncated.b, truncated.a, squared_norm, values[rank:].square().sum().item())


def row_blocks(shape: tuple[int, ...], most: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Ranges (first element, number) of whole rows that cover the elements from `start` to `end`.

    They are the same whichever part of the tensor is covered, so that the products of their rows are.

    Args:
        shape: Of the tensor, [out, in].
        most: Elements of a range, unless one row has more.
    """
    total, step = shape[0] * shape[1], max(most // shape[1], 1) * shape[1]
    for first in range(start // step * step, end, step):
        yield first, min(step, total - first)

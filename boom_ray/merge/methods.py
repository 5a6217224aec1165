"""Merge methods: pure functions from a Gram matrix and weights to the coefficients of a linear combination.

All of them take `gram`, [M, M] float64 with <W_i, W_j>, and `weights`, [M] float64 with sum 1, and return [M]
float64: the merged tensor is sum_i c_i W_i.
"""

from collections.abc import Callable

import torch
from torch import Tensor

#: Directions whose weighted mean is shorter than this cancel each other: the square root of what rounding in
#: float64 leaves of a zero in a Gram matrix.
ANTIPODAL = 1e-7


class Cancelled(ArithmeticError):
    """The weighted directions of the inputs cancel each other, so that there is no direction between them."""


def linear(gram: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean: c_i = w_i (model soups, arXiv 2203.05482)."""
    return weights


def multislerp(gram: Tensor, weights: Tensor) -> Tensor:
    """Multi-SLERP as mergekit computes it: the direction of the mean direction, with the mean of the norms.

    With n_i = ||W_i|| and u_i = W_i / n_i:  c_i = (sum_j w_j n_j) w_i / (n_i ||sum_j w_j u_j||).

    The tangent step of the original is zero at that mean, by construction of the mean. An input of norm zero
    has no direction and contributes nothing to it.

    Raises:
        Cancelled: if the weighted directions add up to (almost) zero.
    """
    norms = gram.diagonal().sqrt()
    present = norms > 0
    if not present.any():
        return torch.zeros_like(weights)
    scaled = torch.where(present, weights / norms.where(present, torch.ones_like(norms)), 0.0)
    length = (scaled @ gram @ scaled).clamp(min=0).sqrt()
    if length < ANTIPODAL * weights[present].abs().sum():
        raise Cancelled
    return (weights @ norms) * scaled / length


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"linear": linear, "multislerp": multislerp}

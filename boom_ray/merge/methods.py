"""Merge methods as functions of the Gram matrix: from inner products and weights to M coefficients.

Each takes `gram`, [M, M] float64 with <W_i, W_j>, `weights`, [M] float64, and the `Options` of the merge, and
returns [M] float64: the merged tensor is sum_i c_i W_i. The W_i are whole weights, or differences to a base
model that is then added. Below, n_i = ||W_i||, u_i = W_i / n_i, and weights have sum 1 unless said otherwise.
An input of norm zero has no direction and contributes nothing to one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Directions whose weighted mean is shorter than this cancel each other. A Gram matrix of millions of
#: elements gives the square of that length to some 1e-14, hence the length to a relative 1e-14 / length²:
#: 1e-6 here, but no digit at the 1e-8 of mergekit, which sees the vectors. The coefficients grow with
#: 1 / length, so that below this line the result is the rounding of the inputs, ten thousandfold.
ANTIPODAL = 1e-4
COLLINEAR = 1e-12  # squared sine of an angle below which two directions are one


class Cancelled(ArithmeticError):
    """The weighted directions of the inputs cancel each other, so that there is no direction between them."""


@dataclass(frozen=True)
class Options:
    """What some methods ask beside weights.

    Attributes:
        scale: Factor on the combined difference (`task_arithmetic`, `ties`, `dare_linear`).
        iterations: Steps of `karcher`; 1 is the formula of the BOOM paper.
        density: Fraction of a difference that is kept (`ties`, `dare_linear`); one, or one per model.
        seed: Of the random choice of `dare_linear`.
        normalize: Whether the sum is divided by that of the weights; None as the method has it.
    """

    scale: float = 1.0
    iterations: int = 10
    density: float | list[float] = 0.5
    seed: int = 0
    normalize: bool | None = None

    def densities(self, count: int) -> list[float]:
        """The density of each of `count` models."""
        return self.density if isinstance(self.density, list) else [self.density] * count


def linear(gram: Array, weights: Array, options: Options) -> Array:
    """Weighted mean: c_i = w_i (model soups, arXiv 2203.05482)."""
    return weights


def task_arithmetic(gram: Array, weights: Array, options: Options) -> Array:
    """Sum of task vectors: c_i = scale * w_i, weights as given (arXiv 2212.04089)."""
    return options.scale * weights


def multislerp(gram: Array, weights: Array, options: Options) -> Array:
    """Multi-SLERP as mergekit computes it: the direction of the mean direction, with the mean of the norms.

    c_i = (sum_j w_j n_j) w_i / (n_i ||sum_j w_j u_j||). The tangent step of the original is zero at that
    mean, by construction of the mean.

    Raises:
        Cancelled: if the weighted directions add up to (almost) zero.
    """
    return _between(gram, weights, iterations=0)


def karcher(gram: Array, weights: Array, options: Options) -> Array:
    """Karcher mean of the directions, with the mean of the norms (BOOM, arXiv 2602.05787, eq. of
    Multi-SLERP).

    m <- exp_m(sum_i w_i log_m(u_i)) from the mean direction on, with log_m(u) = θ / sin θ (u - cos θ m).

    Raises:
        Cancelled: if the weighted directions add up to (almost) zero.
    """
    return _between(gram, weights, options.iterations)


def _between(gram: Array, weights: Array, iterations: int) -> Array:
    """Coefficients of the weighted mean direction after some Karcher steps, with the mean of the norms."""
    norms = np.sqrt(gram.diagonal())
    present = norms > 0
    if not present.any():
        return np.zeros_like(weights)
    inverse = np.divide(1, norms, where=present, out=np.zeros_like(norms))
    shares = np.where(present, weights, 0)
    cosines = inverse[:, None] * gram * inverse
    length = _length(shares, cosines)
    if length < ANTIPODAL * np.abs(shares).sum():
        raise Cancelled
    mean = shares / length
    for _ in range(iterations):
        step = _tangent(mean, shares, cosines)
        length = _length(step, cosines)
        mean = np.cos(length) * mean + np.sinc(length / np.pi) * step
        length = _length(mean, cosines)
        if length < ANTIPODAL:
            raise Cancelled
        mean = mean / length
    return (weights @ norms) * mean * inverse


def _tangent(mean: Array, shares: Array, cosines: Array) -> Array:
    """sum_i w_i log_m(u_i), in coordinates of the u_i."""
    dots = (cosines @ mean).clip(-1, 1)
    angles = np.arccos(dots)
    factors = shares / np.sinc(angles / np.pi).clip(min=1e-12)  # θ / sin θ, 1 where θ is 0
    return factors - (factors @ dots) * mean


def _length(coordinates: Array, cosines: Array) -> float:
    return math.sqrt(max(float(coordinates @ cosines @ coordinates), 0.0))


def slerp(gram: Array, weights: Array, options: Options) -> Array:
    """SLERP of two models: c = (sin((1-t)θ), sin(tθ)) / sin θ with t = w_2; linear where |cos θ| > 0.9995."""
    return _slerp(gram, weights, 1 - 0.9995**2)


def nuslerp(gram: Array, weights: Array, options: Options) -> Array:
    """NuSLERP of two models, over whole tensors: SLERP that is linear only where they are collinear."""
    return _slerp(gram, weights, COLLINEAR)


def _slerp(gram: Array, weights: Array, collinear: float) -> Array:
    norms = np.sqrt(gram.diagonal())
    cosine = np.clip(gram[0, 1] / norms.prod(), -1, 1) if norms.min() else 1.0
    if 1 - cosine**2 <= collinear:
        return weights
    angle = np.arccos(cosine)
    return np.sin(weights * angle) / np.sin(angle)


def model_stock(gram: Array, weights: Array, options: Options) -> Array:
    """Model Stock (arXiv 2403.19522): c_i = t / M, t = M cos θ / (1 + (M-1) cos θ), on differences to a base.

    cos θ is the mean over all pairs; where t has no finite value the base is kept.
    """
    count = len(gram)
    norms = np.sqrt(gram.diagonal())
    products = np.outer(norms, norms)
    cosines = np.divide(gram, products, where=products > 0, out=np.zeros_like(gram))
    cosine = cosines[np.triu_indices(count, 1)].clip(-1, 1).mean()
    denominator = 1 + (count - 1) * cosine
    share = cosine / denominator if abs(denominator) > 1e-6 else 0.0
    return np.full(count, share)


@dataclass(frozen=True)
class Method:
    """A merge method.

    Attributes:
        coefficients: As the module says; None if the method looks at elements (`boom_ray.merge.elementwise`).
        num_models: How many models it takes, at least and at most.
        needs_base: Whether it is defined on differences to a base model only.
        normalizes: Whether weights are made to have sum 1.
        takes_weights: Whether it uses weights at all.
    """

    coefficients: Callable[[Array, Array, Options], Array] | None
    num_models: tuple[int, int] = (2, 1_000_000)
    needs_base: bool = False
    normalizes: bool = True
    takes_weights: bool = True


METHODS: dict[str, Method] = {
    "linear": Method(linear),
    "multislerp": Method(multislerp),
    "karcher": Method(karcher),
    "slerp": Method(slerp, num_models=(2, 2)),
    "nuslerp": Method(nuslerp, num_models=(2, 2)),
    "task_arithmetic": Method(task_arithmetic, needs_base=True, normalizes=False),
    "model_stock": Method(model_stock, needs_base=True, takes_weights=False),
    "ties": Method(None, needs_base=True, normalizes=False),
    "dare_linear": Method(None, needs_base=True),
}

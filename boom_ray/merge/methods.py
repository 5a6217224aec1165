"""Merge methods: functions of a Gram matrix and weights that return M coefficients.

Each takes `gram`, [M, M] float64 with <W_i, W_j>, `weights`, [M] float64, and the settings of the merge, and
returns [M] float64: the merged tensor is sum_i c_i W_i. The W_i are the weights of the models, or task
vectors whose combination is added to the base model. Below, n_i = ||W_i||, u_i = W_i / n_i, and weights have
sum 1 unless stated otherwise. An input of norm zero has no direction and contributes nothing to a mean
direction.

`coefficients_of` multiplies the result of every method by `Merge.scale`.

Methods that decide element by element are in `boom_ray.merge.elementwise`. All methods are in `METHODS`,
under the names that `boom_ray.recipe.MergeMethod` allows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boom_ray.recipe import Merge

Array = NDArray[np.float64]
Coefficients = Callable[[Array, Array, Merge], Array]

#: Directions cancel if their weighted mean is shorter than this. A Gram matrix of millions of elements gives
#: the square of that length to about 1e-14, hence the length to a relative 1e-14 / length²: 1e-6 here, but
#: no digit at mergekit's 1e-8, which is applied to the vectors themselves. The coefficients grow with
#: 1 / length: below this limit they amplify rounding errors of the inputs more than ten thousandfold.
ANTIPODAL = 1e-4
COLLINEAR = 1e-12  # squared sine of an angle below which two directions count as one


class DirectionsCancel(ArithmeticError):
    """The weighted directions of the inputs cancel, so that their mean has no direction."""


@dataclass(frozen=True)
class Method:
    """A merge method.

    Attributes:
        coefficients: A function as described in this module; None for a method that decides by element.
        by_element: Name of a class in `boom_ray.merge.elementwise`, for a method without coefficients. Only
            its name, because that module imports torch, and driver and coordinator start faster without.
        num_models: Smallest and largest number of models; one makes sense with a base model, or weights that
            are not normalized.
        needs_base: Whether it is defined on task vectors only.
        normalizes: Whether weights are scaled to sum 1 by default.
        divides_by_weights: Whether it divides by the weights itself, element by element.
        takes_weights: Whether it uses weights at all.
    """

    coefficients: Coefficients | None = None
    by_element: str | None = None
    num_models: tuple[int, int] = (1, 1_000_000)
    needs_base: bool = False
    normalizes: bool = True
    divides_by_weights: bool = False
    takes_weights: bool = True


METHODS: dict[str, Method] = {
    "ties": Method(by_element="Ties", needs_base=True, normalizes=False, divides_by_weights=True),
    "dare_linear": Method(by_element="DareLinear", needs_base=True),
}


def coefficients_of(settings: Merge, weights: Array, gram: Array) -> Array:
    """Coefficients of the scaled merge: scale * c_i, plus 1 - scale for the model that is scale 0, if any.

    Args:
        settings: Of a method with coefficients.

    Returns:
        [M] float64.

    Raises:
        DirectionsCancel: as the method does.
    """
    method = METHODS[settings.method].coefficients
    assert method is not None
    found = settings.factor * method(gram, weights, settings)
    if settings.origin is not None:
        found[settings.origin] += 1 - settings.factor
    return found


def keeps_equal_tensors(settings: Merge, weights: list[float]) -> bool:
    """Whether a tensor that is equal in all models is its own merge.

    It is not where coefficients sum to another number than 1, because weights are not normalized
    (`task_arithmetic`, by default) or scaled, or where elements are dropped: then the tensor is merged like
    any other.
    """
    method = METHODS[settings.method]
    if method.coefficients is None:
        normalized = method.divides_by_weights and settings.normalize is not False
        total = settings.factor * (1.0 if normalized else math.fsum(weights))
        total += 0.0 if settings.origin is None else 1 - settings.factor
        return min(settings.densities(len(weights))) == 1 and math.isclose(total, 1)
    try:
        same = np.ones((len(weights), len(weights)))
        return math.isclose(float(coefficients_of(settings, np.array(weights), same).sum()), 1)
    except DirectionsCancel:
        return False


def merge_method(**properties: Any) -> Callable[[Coefficients], Coefficients]:
    """Register a function under its own name; `properties` are attributes of `Method`."""

    def register(function: Coefficients) -> Coefficients:
        METHODS[function.__name__] = Method(coefficients=function, **properties)
        return function

    return register


@merge_method()
def linear(gram: Array, weights: Array, settings: Merge) -> Array:
    """Weighted mean: c_i = w_i (model soups, arXiv 2203.05482)."""
    return weights


@merge_method(needs_base=True, normalizes=False)
def task_arithmetic(gram: Array, weights: Array, settings: Merge) -> Array:
    """Sum of task vectors: c_i = w_i, weights not normalized (arXiv 2212.04089)."""
    return weights


@merge_method()
def multislerp(gram: Array, weights: Array, settings: Merge) -> Array:
    """Multi-SLERP as mergekit computes it: the mean of the directions, scaled to the mean of the norms.

    c_i = (sum_j w_j n_j) w_i / (n_i ||sum_j w_j u_j||). mergekit's tangent step at that mean is zero, because
    it sums the deviations from the mean.

    Raises:
        DirectionsCancel: if the weighted directions sum to almost zero.
    """
    return _between(gram, weights, iterations=0)


@merge_method()
def karcher(gram: Array, weights: Array, settings: Merge) -> Array:
    """Karcher mean of the directions, scaled to the mean of the norms (Multi-SLERP of arXiv 2602.05787).

    Starts at the mean direction and repeats m <- exp_m(sum_i w_i log_m(u_i)), with
    log_m(u) = θ / sin θ (u - cos θ m).

    Raises:
        DirectionsCancel: if the weighted directions sum to almost zero.
    """
    return _between(gram, weights, settings.iterations)


def _between(gram: Array, weights: Array, iterations: int) -> Array:
    """Coefficients of the mean direction after some Karcher steps, scaled to the mean of the norms."""
    norms = np.sqrt(gram.diagonal())
    present = norms > 0
    if not present.any():
        return np.zeros_like(weights)
    inverse = np.divide(1, norms, where=present, out=np.zeros_like(norms))
    present_weights = np.where(present, weights, 0)
    if iterations and not present.all() and present_weights.sum():
        present_weights *= weights.sum() / present_weights.sum()  # a step is a mean over the directions
    cosines = inverse[:, None] * gram * inverse
    length = _length(present_weights, cosines)
    if length < ANTIPODAL * np.abs(present_weights).sum():
        raise DirectionsCancel
    mean = present_weights / length
    for _ in range(iterations):
        step = _tangent(mean, present_weights, cosines)
        length = _length(step, cosines)
        mean = np.cos(length) * mean + np.sinc(length / np.pi) * step
        length = _length(mean, cosines)
        if length < ANTIPODAL:
            raise DirectionsCancel
        mean = mean / length
    return (weights @ norms) * mean * inverse


def _tangent(mean: Array, present_weights: Array, cosines: Array) -> Array:
    """sum_i w_i log_m(u_i), in coordinates of the u_i."""
    dots = (cosines @ mean).clip(-1, 1)
    angles = np.arccos(dots)
    factors = present_weights / np.sinc(angles / np.pi).clip(min=1e-12)  # θ / sin θ, 1 where θ is 0
    return factors - (factors @ dots) * mean


def _length(coordinates: Array, cosines: Array) -> float:
    return math.sqrt(max(float(coordinates @ cosines @ coordinates), 0.0))


@merge_method(num_models=(2, 2))
def slerp(gram: Array, weights: Array, settings: Merge) -> Array:
    """SLERP of two models: c = (sin((1-t)θ), sin(tθ)) / sin θ with t = w_2; linear if |cos θ| > 0.9995.

    A model of norm zero counts as orthogonal to the other, as in mergekit.
    """
    return _slerp(gram, weights, 1 - 0.9995**2)


@merge_method(num_models=(2, 2))
def nuslerp(gram: Array, weights: Array, settings: Merge) -> Array:
    """NuSLERP of two models, over whole tensors: SLERP that is linear only for collinear inputs."""
    return _slerp(gram, weights, COLLINEAR)


def _slerp(gram: Array, weights: Array, collinear: float) -> Array:
    norms = np.sqrt(gram.diagonal())
    cosine = np.clip(gram[0, 1] / norms.prod(), -1, 1) if norms.min() else 0.0
    if 1 - cosine**2 <= collinear:
        return weights
    angle = np.arccos(cosine)
    return np.sin(weights * angle) / np.sin(angle)


@merge_method(num_models=(2, 1_000_000), needs_base=True, takes_weights=False)
def model_stock(gram: Array, weights: Array, settings: Merge) -> Array:
    """Model Stock (arXiv 2403.19522): c_i = t / M, t = M cos θ / (1 + (M-1) cos θ), on task vectors.

    cos θ is the mean over all pairs. If t has no finite value, the result is the base.
    """
    count = len(gram)
    norms = np.sqrt(gram.diagonal())
    products = np.outer(norms, norms)
    cosines = np.divide(gram, products, where=products > 0, out=np.zeros_like(gram))
    cosine = cosines[np.triu_indices(count, 1)].clip(-1, 1).mean()
    denominator = 1 + (count - 1) * cosine
    factor = cosine / denominator if abs(denominator) > 1e-6 else 0.0
    return np.full(count, factor)

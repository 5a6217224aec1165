"""The merges that a search tries, and the optimizer that draws them.

A point of the space has a scale, a change per model, and one per model and group of layers: with c⁰ from a
method,

    c_gi = exp(scale) * (1 + change_i + change_gi) * c⁰_gi

The few dimensions that all groups share are drawn wider than those of single groups: most of what can be won
with few measurements is in them. CMA-ES (Hansen, arXiv 1604.00772) learns from ranks alone, which suits noisy
scores, and moves its mean to where the better half of a generation was.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from cmaes import CMA
from numpy.typing import NDArray

SCALE, MODEL, GROUP = 0.2, 0.3, 0.15  # standard deviations of the first draws
LEAST = 0.01  # of (1 + change_i + change_gi): no coefficient changes its sign
FEWEST_DRAWS = 4  # in a generation, for half of them to be better
SEED = 0
DIGITS = 6  # of the coefficients that are measured and recorded

Point = NDArray[np.float64]
Coefficients = dict[str, list[float]]  # group of layers -> one coefficient per model


@dataclass(frozen=True)
class SearchSpace:
    """Coefficients around those of a start.

    Attributes:
        start: c⁰.
        sum_to_one: Whether the coefficients of every group do, as those of whole weights must: then they have
            no scale.
    """

    start: Coefficients
    sum_to_one: bool = False

    @property
    def deviations(self) -> Point:
        """Standard deviation of the first draws in each dimension."""
        num_groups, num_models = self._start.shape
        return np.repeat([SCALE, MODEL, GROUP], [1, num_models, num_groups * num_models])

    def coefficients(self, point: Point) -> Coefficients:
        """The coefficients of a point, rounded."""
        num_models = self._start.shape[1]
        changes = point[1 : 1 + num_models] + point[1 + num_models :].reshape(self._start.shape)
        values = self._start * np.exp(point[0]) * np.maximum(LEAST, 1 + changes)
        if self.sum_to_one:
            values /= values.sum(axis=1, keepdims=True)
        return dict(zip(self.start, values.round(DIGITS).tolist(), strict=True))

    def distance(self, point: Point) -> float:
        """How far a point is from the start, in standard deviations."""
        return float(np.linalg.norm(point / self.deviations))

    @property
    def _start(self) -> Point:
        """[G, M]."""
        return np.array(list(self.start.values()))


def optimize(
    space: SearchSpace, num_points: int, measure: Callable[[Sequence[Point]], Sequence[float]]
) -> None:
    """Measure points generation by generation, and in the end the mean of the optimizer.

    The mean of many good draws is less lucky than the best of them.

    Args:
        num_points: The most points to measure, `FEWEST_DRAWS` + 1 or more.
        measure: Scores of the points of a generation; more is better.
    """
    deviations = space.deviations
    usual = 4 + int(3 * np.log(len(deviations)))
    num_generations = max(1, (num_points - 1) // usual)
    size = (num_points - 1) // num_generations
    optimizer = CMA(
        np.zeros(len(deviations)), sigma=1.0, cov=np.diag(deviations**2), seed=SEED, population_size=size
    )
    for _ in range(num_generations):
        points = [optimizer.ask() for _ in range(size)]
        optimizer.tell([(point, -score) for point, score in zip(points, measure(points), strict=True)])
    measure([optimizer.mean.copy()])

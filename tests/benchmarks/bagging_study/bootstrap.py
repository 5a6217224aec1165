"""Intervals of a difference between two arms, by a hierarchical bootstrap over seeds, tasks and queries.

The differences are D[seed, task, query]: both arms answer the same queries at the same seeds. Queries belong
to a task, and are crossed with seeds: all seeds answer the same. A resample draws seeds with replacement,
tasks with replacement, and in each drawn task as many queries as it has, with replacement; its value is the
mean over the drawn seeds, tasks and queries, every task with equal weight. So the interval is about other
seeds, other tasks of these kinds and other queries. With one seed nothing is known about seeds, and the
interval leaves them out. In simulations with eight seeds and eight tasks, 95 % intervals contain the true
difference in 88 to 90 % of the cases if it varies over seeds or tasks, and always if it varies over queries
alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 4000
CONFIDENCE = 0.95
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean difference with its confidence interval.

    Attributes:
        seeds: Number of seeds it is the mean of.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """`better` or `worse` if the interval excludes zero, else `undecided`."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "undecided"


def interval(differences: Sequence[Array], num_resamples: int = NUM_RESAMPLES) -> Interval:
    """The mean over tasks of the mean over seeds and queries, with its interval.

    Args:
        differences: For each task, [seeds, queries] float64 differences; the same seeds in all tasks.
    """
    means = resampled(differences, num_resamples)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    mean = float(np.mean([task.mean() for task in differences]))
    return Interval(mean, float(low), float(high), len(differences[0]))


def resampled(differences: Sequence[Array], num_resamples: int) -> Array:
    """[num_resamples] float64, the means of the resamples; the same for the same differences."""
    draw = np.random.default_rng(0)
    num_seeds, num_tasks = len(differences[0]), len(differences)
    seeds = draw.integers(num_seeds, size=(num_resamples, num_seeds))
    weights = np.stack([(seeds == seed).mean(axis=1) for seed in range(num_seeds)], axis=1)
    chosen = draw.integers(num_tasks, size=(num_resamples, num_tasks))
    total = np.zeros(num_resamples)
    for index, task in enumerate(differences):
        resamples = np.nonzero(chosen == index)[0]  # twice where the task is drawn twice
        queries = draw.integers(task.shape[1], size=(len(resamples), task.shape[1]))
        drawn = np.take_along_axis((weights @ task)[resamples], queries, axis=1)
        total += np.bincount(resamples, drawn.mean(axis=1), minlength=num_resamples)
    return total / num_tasks

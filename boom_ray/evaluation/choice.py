"""The choice of one candidate by its scores on development queries, which are noisy.

The best of several noisy scores is a biased choice: it is often the luckiest. So of all candidates that are
worse than the best by at most one standard error, the one closest to the start is taken, as in the
one-standard-error rule of cross-validation (Breiman et al., 1984). The error is that of the paired difference
over queries: both candidates answer the same ones, so what makes a query hard for both does not count.
"""

import math
from collections.abc import Mapping
from statistics import fmean, variance

from boom_ray.evaluation.protocol import Measurement
from boom_ray.runs.scores import main_score


def mean_score(measured: Mapping[str, Measurement]) -> float:
    """The mean main score over tasks."""
    return fmean(main_score(found.scores) for found in measured.values())


def choose(
    measured: Mapping[str, Mapping[str, Measurement]], distances: Mapping[str, float]
) -> tuple[str, dict[str, float]]:
    """Choose a candidate.

    Args:
        measured: Candidate -> task -> measurement, of all candidates on the same tasks.
        distances: How far each candidate is from the start.

    Returns:
        The chosen candidate; and for each the standard error of the difference between its mean score and the
        best.
    """
    scores = {candidate: mean_score(tasks) for candidate, tasks in measured.items()}
    best = max(scores, key=lambda candidate: (scores[candidate], -distances[candidate]))
    errors = {candidate: standard_error(tasks, measured[best]) for candidate, tasks in measured.items()}
    good = [candidate for candidate in scores if scores[best] - scores[candidate] <= errors[candidate]]
    return min(good, key=lambda candidate: (distances[candidate], -scores[candidate])), errors


def standard_error(ours: Mapping[str, Measurement], theirs: Mapping[str, Measurement]) -> float:
    """Standard error of the difference of two means over tasks: the tasks are fixed, their queries a sample.

    A task without scores of single queries adds none. One query has no variance: the error is infinite.
    """
    squares = [
        _squared_error([score - theirs[task].queries[query] for query, score in found.queries.items()])
        for task, found in ours.items()
        if found.queries
    ]
    return math.sqrt(math.fsum(squares)) / len(ours)


def _squared_error(differences: list[float]) -> float:
    return variance(differences) / len(differences) if len(differences) > 1 else math.inf

"""The choice of one candidate by its scores on development queries, which are noisy.

The best of several noisy scores is a biased choice: it is often the luckiest. So among the scales of the best
candidate the closest to 1 is taken that is worse by at most one standard error, as in the one-standard-error
rule of cross-validation (Breiman et al., 1984). The error is that of the paired difference over queries: both
candidates answer the same ones, so what makes a query hard for both does not count.
"""

import math
from collections.abc import Mapping
from statistics import fmean, variance

from boom_ray.evaluation.protocol import Measurement
from boom_ray.runs.scores import main_score

Candidate = tuple[str, float]  # label and scale
Candidates = Mapping[Candidate, Mapping[str, Measurement]]  # -> task -> measurement


def choose(measured: Candidates) -> tuple[Candidate, dict[Candidate, float], dict[Candidate, float]]:
    """Choose a candidate.

    Args:
        measured: Measurements of all candidates on the same tasks.

    Returns:
        The chosen candidate; the mean main score over tasks of every candidate; and the standard error of the
        difference between this and the best mean.
    """
    scores = {
        candidate: fmean(main_score(found.scores) for found in tasks.values())
        for candidate, tasks in measured.items()
    }
    best = max(scores, key=lambda candidate: (scores[candidate], -abs(candidate[1] - 1)))
    errors = {candidate: standard_error(tasks, measured[best]) for candidate, tasks in measured.items()}
    good = [
        candidate
        for candidate in scores
        if candidate[0] == best[0] and scores[best] - scores[candidate] <= errors[candidate]
    ]
    return min(good, key=lambda candidate: (abs(candidate[1] - 1), -scores[candidate])), scores, errors


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

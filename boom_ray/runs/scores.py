"""Scores of models on tasks: groups of tasks, main scores, and means per group."""

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from boom_ray.artifacts.contents import Scores, TaskScores

if TYPE_CHECKING:
    import pandas

MAIN_SCORE = "main score"  # the metric of a mean over tasks with different main metrics


def task_groups(tasks: list[str]) -> dict[str, list[str]]:
    """The tasks of each group, sorted by group, and all tasks as `all`.

    The group of `in_domain/numpy` is `in_domain`; a task without a `/` is in `all` only.
    """
    groups: dict[str, list[str]] = {}
    for task in tasks:
        groups.setdefault(task.rpartition("/")[0], []).append(task)
    return {group: groups[group] for group in sorted(groups) if group} | ({"all": tasks} if tasks else {})


def main_score(scores: TaskScores) -> float:
    """The main score of a task or of a mean: the first."""
    return next(iter(scores.values()))


def main_metric(scores: Scores) -> str:
    """The metric of the main scores: the common one, or `MAIN_SCORE` if tasks differ."""
    metrics = {next(iter(of_task)) for of_task in scores.values()}
    return metrics.pop() if len(metrics) == 1 else MAIN_SCORE


def mean_scores(scores: Scores) -> Scores:
    """Mean of every metric per group of tasks, and over all tasks as `all`; the main score comes first.

    Args:
        scores: task -> metric -> value.
    """
    return {
        group: _mean({task: scores[task] for task in tasks})
        for group, tasks in task_groups(list(scores)).items()
    }


def _mean(scores: Scores) -> dict[str, float]:
    """Mean of the main scores, and of each other metric that all tasks report."""
    metric, of_tasks = main_metric(scores), list(scores.values())
    shared = [name for name in of_tasks[0] if name != metric and all(name in one for one in of_tasks)]
    return {metric: fmean(map(main_score, of_tasks))} | {
        name: fmean(one[name] for one in of_tasks) for name in shared
    }


@dataclass(frozen=True)
class ScoreTable:
    """Scores of several models on the same tasks.

    Attributes:
        results: label -> task -> metric -> value, the main score first.
    """

    results: dict[str, Scores]

    @property
    def means(self) -> dict[str, Scores]:
        """label -> group of tasks -> metric -> value, see `mean_scores`."""
        return {label: mean_scores(scores) for label, scores in self.results.items()}

    def to_frame(self) -> "pandas.DataFrame":
        """The main scores: one row per task and mean, one column per model."""
        import pandas

        columns = {
            label: {task: main_score(found) for task, found in scores.items()}
            | {f"mean {group}": main_score(found) for group, found in mean_scores(scores).items()}
            for label, scores in self.results.items()
        }
        first = next(iter(self.results.values()), {})
        return pandas.DataFrame(columns).rename_axis(main_metric(first) if first else None)

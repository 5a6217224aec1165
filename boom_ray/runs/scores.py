"""Scores of models on tasks: groups of tasks, main scores, and means per group."""

from statistics import fmean

Scores = dict[str, dict[str, float]]  # task -> metric -> value, the main score first
MAIN_SCORE = "main score"  # the metric of a mean over tasks with different main metrics


def task_groups(tasks: list[str]) -> dict[str, list[str]]:
    """The tasks of each group, sorted by group, and all tasks as `all`.

    The group of `in_domain/numpy` is `in_domain`; a task without a `/` is in `all` only.
    """
    groups: dict[str, list[str]] = {}
    for task in tasks:
        groups.setdefault(task.rpartition("/")[0], []).append(task)
    return {group: groups[group] for group in sorted(groups) if group} | ({"all": tasks} if tasks else {})


def main_score(scores: dict[str, float]) -> float:
    """The main score of a task or of a mean: the first."""
    return next(iter(scores.values()))


def main_metric(scores: Scores) -> str:
    """The metric of the main scores: the common one, or `MAIN_SCORE` if tasks differ."""
    metrics = {next(iter(of_task)) for of_task in scores.values()}
    return metrics.pop() if len(metrics) == 1 else MAIN_SCORE


def mean_scores(scores: Scores) -> dict[str, dict[str, float]]:
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

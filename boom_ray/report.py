"""Results as people read them: one table of all models on all tasks, with a mean per group."""

from statistics import fmean

from rich.table import Table

Scores = dict[str, dict[str, float]]
MAIN_SCORE = "main score"  # of tasks with different main metrics


def groups(tasks: list[str]) -> dict[str, list[str]]:
    """Tasks by group, which is a task's path without the last part; and all of them as `all`."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        found.setdefault(task.rpartition("/")[0], []).append(task)
    return {group: found[group] for group in sorted(found) if group} | ({"all": tasks} if tasks else {})


def main(scores: dict[str, float]) -> float:
    """The main score of a task or of a mean: the first."""
    return next(iter(scores.values()))


def main_metric(scores: Scores) -> str:
    """What the main scores of tasks are: of all the same metric, or of each its own."""
    metrics = {next(iter(found)) for found in scores.values()}
    return metrics.pop() if len(metrics) == 1 else MAIN_SCORE


def means(scores: Scores) -> dict[str, dict[str, float]]:
    """Mean of every metric per group of tasks, and over all tasks as `all`; the main score comes first.

    Args:
        scores: task -> metric -> value.
    """
    return {
        group: _mean({task: scores[task] for task in tasks}) for group, tasks in groups(list(scores)).items()
    }


def _mean(scores: Scores) -> dict[str, float]:
    """Of the main scores, and of the other metrics that all tasks have."""
    metric, found = main_metric(scores), list(scores.values())
    shared = [name for name in found[0] if name != metric and all(name in one for one in found)]
    return {metric: fmean(map(main, found))} | {name: fmean(one[name] for one in found) for name in shared}


def rows(results: dict[str, Scores]) -> list[list[str]]:
    """The cells of the table of main scores, header first: a row per task and mean, a column per model.

    Args:
        results: label -> task -> metric -> value.
    """
    labels, first = list(results), next(iter(results.values()))
    averages = {label: means(results[label]) for label in labels}
    body = [[task, *(f"{main(results[label][task]):.3f}" for label in labels)] for task in first]
    body += [
        [f"mean {group}", *(f"{main(averages[label][group]):.3f}" for label in labels)]
        for group in averages[labels[0]]
    ]
    return [[main_metric(first), *labels], *body]


def terminal_table(results: dict[str, Scores]) -> Table:
    """The table for a terminal."""
    header, *body = rows(results)
    table = Table(header[0], show_edge=False)
    for label in header[1:]:
        table.add_column(label, justify="right")
    for row in body:
        table.add_row(*row, style="bold" if row[0].startswith("mean ") else None)
    return table


def markdown_table(results: dict[str, Scores]) -> str:
    """The table for a model card."""
    header, *body = rows(results)
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *body])


def score_table(scores: dict[str, float]) -> Table:
    """One score per line, best first."""
    table = Table("candidate", "mean score", box=None)
    for label, score in sorted(scores.items(), key=lambda item: -item[1]):
        table.add_row(label, f"{score:.4f}")
    return table

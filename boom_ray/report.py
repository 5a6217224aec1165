"""Results as people read them: one table of all models on all tasks, with a mean per group."""

from statistics import fmean

from rich.table import Table

Scores = dict[str, dict[str, float]]
MAIN_METRIC = "ndcg@10"


def groups(tasks: list[str]) -> dict[str, list[str]]:
    """Tasks by group, which is a task's path without the last part; and all of them as `all`."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        found.setdefault(task.rpartition("/")[0], []).append(task)
    return {group: found[group] for group in sorted(found) if group} | {"all": tasks}


def means(scores: Scores) -> dict[str, dict[str, float]]:
    """Mean of every metric per group of tasks, and over all tasks as `all`.

    Args:
        scores: task -> metric -> value.
    """
    return {
        group: {metric: fmean(scores[task][metric] for task in tasks) for metric in scores[tasks[0]]}
        for group, tasks in groups(list(scores)).items()
    }


def rows(results: dict[str, Scores], metric: str = MAIN_METRIC) -> list[list[str]]:
    """The cells of the table, header first: one row per task and per mean, one column per model.

    Args:
        results: label -> task -> metric -> value.
    """
    labels = list(results)
    averages = {label: means(results[label]) for label in labels}
    tasks = next(iter(results.values()))
    body = [[task, *(f"{results[label][task][metric]:.3f}" for label in labels)] for task in tasks]
    body += [
        [f"mean {group}", *(f"{averages[label][group][metric]:.3f}" for label in labels)]
        for group in averages[labels[0]]
    ]
    return [[metric, *labels], *body]


def terminal_table(results: dict[str, Scores], metric: str = MAIN_METRIC) -> Table:
    """The table for a terminal."""
    header, *body = rows(results, metric)
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
    table = Table("candidate", MAIN_METRIC, box=None)
    for label, score in sorted(scores.items(), key=lambda item: -item[1]):
        table.add_row(label, f"{score:.4f}")
    return table

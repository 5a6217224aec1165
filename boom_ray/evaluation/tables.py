"""Tables of scores: one row per task and per mean, one column per model."""

from rich.table import Table

from boom_ray.runs.scores import Scores, main_metric, main_score, mean_scores


def score_rows(results: dict[str, Scores]) -> list[list[str]]:
    """The cells of the table of main scores, header first.

    Args:
        results: label -> task -> metric -> value.
    """
    labels, first = list(results), next(iter(results.values()))
    means = {label: mean_scores(results[label]) for label in labels}
    body = [[task, *(f"{main_score(results[label][task]):.3f}" for label in labels)] for task in first]
    body += [
        [f"mean {group}", *(f"{main_score(means[label][group]):.3f}" for label in labels)]
        for group in means[labels[0]]
    ]
    return [[main_metric(first), *labels], *body]


def terminal_table(results: dict[str, Scores]) -> Table:
    """The table for a terminal."""
    header, *body = score_rows(results)
    table = Table(header[0], show_edge=False)
    for label in header[1:]:
        table.add_column(label, justify="right")
    for row in body:
        table.add_row(*row, style="bold" if row[0].startswith("mean ") else None)
    return table


def markdown_table(results: dict[str, Scores]) -> str:
    """The table for a model card."""
    header, *body = score_rows(results)
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *body])


def score_table(scores: dict[str, float]) -> Table:
    """One candidate per row, the best first."""
    table = Table("candidate", "mean score", box=None)
    for label, score in sorted(scores.items(), key=lambda item: -item[1]):
        table.add_row(label, f"{score:.4f}")
    return table

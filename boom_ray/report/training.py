"""What the models were trained on, and how it went: rows per task and bag, and the curves of every loss."""

from dataclasses import dataclass

import numpy as np

from boom_ray.report.collect import Found, Trained
from boom_ray.report.scale import Axis, axis, duration

MAX_POINTS = 240
SPARK_POINTS = 80


@dataclass(frozen=True)
class Mixed:
    """One task's part in the bags: rows of each, and their share of it in percent of the largest share."""

    task: str
    kind: str
    origin: str
    rows: int
    quarantined: int
    duplicates: int
    bags: list[tuple[int, float]]


@dataclass(frozen=True)
class Mix:
    """Rows per task and bag; `columns` are the models' names with their ratios, `totals` their rows."""

    columns: list[tuple[str, float]]
    tasks: list[Mixed]
    rows: int
    totals: list[int]


def mix(found: Found) -> Mix | None:
    """The mixture of data, or None before there is a corpus."""
    if found.corpus is None:
        return None
    totals = [sum(model.tasks.values()) for model in found.trained]
    largest = max(
        (max(model.tasks.values()) / sum(model.tasks.values()) for model in found.trained), default=1
    )
    tasks = [
        Mixed(
            task=name,
            kind=counts.type,
            origin=_origin(found, name),
            rows=counts.rows,
            quarantined=counts.quarantined,
            duplicates=counts.duplicates,
            bags=[
                (model.tasks[name], round(100 * model.tasks[name] / total / largest, 1))
                for model, total in zip(found.trained, totals, strict=True)
            ],
        )
        for name, counts in found.corpus.config.tasks.items()
    ]
    columns = [(model.name, model.ratio) for model in found.trained]
    return Mix(columns, tasks, sum(task.rows for task in tasks), totals)


def _origin(found: Found, task: str) -> str:
    """Of an update's tasks, which are new, and which a sample of earlier rows."""
    if found.request is None:
        return ""
    new = [new_task.name for new_task in found.request.tasks]
    return "new" if task in new else f"core {found.request.core_percent:g} %"


@dataclass(frozen=True)
class Curve:
    """One model's training.

    Attributes:
        model: Which.
        color: Index of its color.
        points: Its smoothed loss, as an SVG list of points in a box of 100 by 100.
        spark: The loss of every step (thinned out) in a box of its own.
        facts: Columns of the table by name.
    """

    model: Trained
    color: int
    points: str
    spark: str
    facts: dict[str, str]


@dataclass(frozen=True)
class Curves:
    """The loss of all models over their steps, on common axes."""

    steps: Axis
    losses: Axis
    curves: list[Curve]


def curves(found: Found) -> Curves | None:
    """The curves of all models that are published; None if none is."""
    trained = [model for model in found.trained if model.steps]
    if not trained:
        return None
    smooth = [smoothed([step["loss"] for step in model.steps]) for model in trained]
    steps = axis([0, *(len(losses) for losses in smooth)], tight=True)
    losses = axis([0.0, *(value for values in smooth for value in (values.min(), values.max()))])
    return Curves(
        steps,
        losses,
        [
            Curve(
                model=model,
                color=found.trained.index(model),
                points=_line(values, steps, losses),
                spark=_spark(np.array([step["loss"] for step in model.steps])),
                facts=_facts(model, values),
            )
            for model, values in zip(trained, smooth, strict=True)
        ],
    )


def smoothed(losses: list[float]) -> np.ndarray:
    """Mean over a twelfth of all steps, at least five, around each: a step's loss is of one task's batch."""
    values = np.array(losses)
    half = max(2, len(values) // 24)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _line(values: np.ndarray, steps: Axis, losses: Axis) -> str:
    kept = np.unique(np.linspace(0, len(values) - 1, MAX_POINTS).astype(int))
    return " ".join(f"{steps.at(at + 1):g},{100 - losses.at(values[at]):g}" for at in kept)


def _spark(values: np.ndarray) -> str:
    pieces = np.array_split(values, min(len(values), SPARK_POINTS))
    means = np.array([piece.mean() for piece in pieces])
    low, height = means.min(), max(float(np.ptp(means)), 1e-9)
    across = 100 / max(1, len(means) - 1)
    return " ".join(
        f"{at * across:.1f},{95 - 90 * (mean - low) / height:.1f}" for at, mean in enumerate(means)
    )


def _facts(model: Trained, smooth: np.ndarray) -> dict[str, str]:
    assert model.record is not None and model.record.metrics.training is not None
    metrics = model.record.metrics.training
    before, after = metrics.check.before, metrics.check.after
    return {
        "steps": f"{metrics.step:,}",
        "loss": f"{smooth[0]:.3f} → {smooth[-1]:.3f}",
        "tokens": f"{metrics.tokens:,}",
        "tokens/s": f"{metrics.tokens / max(metrics.seconds, 1e-9):,.0f}",
        "time": duration(metrics.seconds),
        "ranks": f"{metrics.num_ranks}",
        "padding": f"{np.mean([step['padding_fraction'] for step in model.steps]):.0%}",
        "truncated": f"{np.mean([step['truncated_fraction'] for step in model.steps]):.0%}",
        "check": "" if before is None or after is None else f"{before:.3f} → {after:.3f}",
    }

"""The training of the models: rows per task and bag, and loss curves."""

from dataclasses import dataclass

import numpy as np

from boom_ray.recipe import Bag
from boom_ray.report.collect import RunContents, TrainedModel
from boom_ray.report.scale import Axis, axis, duration

MAX_POINTS = 240
SPARK_POINTS = 80


@dataclass(frozen=True)
class TaskMixture:
    """The rows of one task in each bag, and their share of the bag in percent of the largest share.

    Attributes:
        origin: `new` or `core` in an update, otherwise empty.
    """

    task: str
    kind: str
    origin: str
    rows: int
    quarantined: int
    duplicates: int
    bags: list[tuple[int, float]]


@dataclass(frozen=True)
class DataMixture:
    """Rows per task and bag.

    Attributes:
        columns: Names of the models, with their bags.
        totals: Rows of each model.
    """

    columns: list[tuple[str, Bag]]
    tasks: list[TaskMixture]
    rows: int
    totals: list[int]


def mix(found: RunContents) -> DataMixture | None:
    """The mixture of data; None before there is a corpus."""
    if found.corpus is None:
        return None
    totals = [sum(model.tasks.values()) for model in found.trained]
    largest = max(
        (max(model.tasks.values()) / sum(model.tasks.values()) for model in found.trained), default=1
    )
    tasks = [
        TaskMixture(
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
    columns = [(model.name, model.bag) for model in found.trained]
    return DataMixture(columns, tasks, sum(task.rows for task in tasks), totals)


def _origin(found: RunContents, task: str) -> str:
    """Whether an update brought a task, or sampled its rows from earlier ones."""
    if found.request is None:
        return ""
    new = [one.name for one in found.request.tasks]
    return "new" if task in new else f"core {found.request.core_percent:g} %"


@dataclass(frozen=True)
class LossCurve:
    """One model's training.

    Attributes:
        color: Index of its color.
        points: Its smoothed loss, as an SVG list of points in a box of 100 by 100.
        spark: Its loss without smoothing, downsampled, in a box of its own.
        facts: Cells of the table by the name of their column.
    """

    model: TrainedModel
    color: int
    points: str
    spark: str
    facts: dict[str, str]


@dataclass(frozen=True)
class LossCurves:
    """The loss curves of all models on common axes."""

    steps: Axis
    losses: Axis
    curves: list[LossCurve]


def curves(found: RunContents) -> LossCurves | None:
    """The loss curves of all published models; None if there is none."""
    trained = [model for model in found.trained if model.steps]
    if not trained:
        return None
    smooth = [smoothed([step.loss for step in model.steps]) for model in trained]
    steps = axis([0, *(len(losses) for losses in smooth)], tight=True)
    losses = axis([0.0, *(value for values in smooth for value in (values.min(), values.max()))])
    return LossCurves(
        steps,
        losses,
        [
            LossCurve(
                model=model,
                color=found.trained.index(model),
                points=_line(values, steps, losses),
                spark=_spark(np.array([step.loss for step in model.steps])),
                facts=_facts(model, values),
            )
            for model, values in zip(trained, smooth, strict=True)
        ],
    )


def smoothed(losses: list[float]) -> np.ndarray:
    """[steps] running mean over a twelfth of the steps, at least five.

    Losses of single steps differ by task, as every batch contains rows of one task only.
    """
    values = np.array(losses)
    half = max(2, len(values) // 24)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _line(values: np.ndarray, steps: Axis, losses: Axis) -> str:
    shown = np.unique(np.linspace(0, len(values) - 1, MAX_POINTS).astype(int))
    return " ".join(f"{steps.at(at + 1):g},{100 - losses.at(values[at]):g}" for at in shown)


def _spark(values: np.ndarray) -> str:
    pieces = np.array_split(values, min(len(values), SPARK_POINTS))
    means = np.array([piece.mean() for piece in pieces])
    low, height = means.min(), max(float(np.ptp(means)), 1e-9)
    across = 100 / max(1, len(means) - 1)
    return " ".join(
        f"{at * across:.1f},{95 - 90 * (mean - low) / height:.1f}" for at, mean in enumerate(means)
    )


def _facts(model: TrainedModel, smooth: np.ndarray) -> dict[str, str]:
    assert model.record is not None and model.record.metrics.training is not None
    metrics = model.record.metrics.training
    before, after = metrics.check.before, metrics.check.after
    return {
        "steps": f"{metrics.step:,}",
        "loss": f"{smooth[0]:.3f} → {smooth[-1]:.3f}",
        "tokens": f"{metrics.tokens:,}",
        "tokens/s": f"{metrics.tokens / max(metrics.seconds, 1e-9):,.0f}",
        "time": duration(metrics.seconds),
        "ranks": ", ".join(map(str, model.ranks)),
        "padding": f"{np.mean([step.padding_fraction for step in model.steps]):.0%}",
        "truncated": f"{np.mean([step.truncated_fraction for step in model.steps]):.0%}",
        "check": "" if before is None or after is None else f"{before:.3f} → {after:.3f}",
    }

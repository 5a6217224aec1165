"""The quality of the version: its scores on every task, compared with those of the other models."""

from dataclasses import dataclass, replace

from boom_ray.artifacts.contents import Comparison, Difference, ModelMetrics, UpdateMetrics
from boom_ray.report.collect import RunContents
from boom_ray.report.scale import Axis, axis
from boom_ray.runs.scores import Scores, main_metric, main_score, mean_scores, task_groups

AGAINST_BASE = "Compared with the base model"
AGAINST_BASELINE = "Compared with one model of the full corpus"


@dataclass(frozen=True)
class ScoreChange:
    """Two scores on a task or in a mean of tasks; without an interval of the difference, that is None."""

    ours: float
    theirs: float
    interval: tuple[float, float] | None = None
    verdict: str = "unknown"
    queries: int | None = None

    @property
    def difference(self) -> float:
        """Ours minus theirs."""
        return self.ours - self.theirs


@dataclass(frozen=True)
class ModelComparison:
    """One model compared with another.

    Attributes:
        title: `AGAINST_BASE`, `AGAINST_BASELINE`; of updates `New tasks` and `Old tasks`.
        metric: That of all tasks, or `MAIN_SCORE`.
        ours: Name of our model on the page.
        theirs: Name of the other.
        tasks: The scores on every task.
        means: The means of every group of tasks, last that of `all`.
        others: Scores of further models by name: on every task, and the means.
    """

    title: str
    metric: str
    ours: str
    theirs: str
    tasks: dict[str, ScoreChange]
    means: dict[str, ScoreChange]
    others: dict[str, tuple[dict[str, float], dict[str, float]]]

    @property
    def overall(self) -> ScoreChange:
        """The means over all tasks."""
        return self.means["all"]

    def tasks_with(self, verdict: str) -> list[str]:
        """The tasks with a verdict, sorted by the size of the difference, the largest first."""
        names = [task for task, change in self.tasks.items() if change.verdict == verdict]
        return sorted(names, key=lambda task: -abs(self.tasks[task].difference))


def model_comparisons(found: RunContents) -> list[ModelComparison]:
    """The measured comparisons, the most important first."""
    metrics, names = found.record.metrics if found.record else ModelMetrics(), names_of(found)
    if found.request:
        update = metrics.update or UpdateMetrics()
        return [
            _measured_comparison(
                title, update.scores[kind], update.comparisons.get(kind), ("child", "parent"), names
            )
            for kind, title in (("new", "New tasks"), ("old", "Old tasks"))
            if kind in update.scores
        ]
    if not metrics.evaluation:
        return []
    first = _measured_comparison(
        AGAINST_BASE, metrics.evaluation, metrics.comparison, ("merged", "base"), names
    )
    return [first, *([_baseline_comparison(found.comparison)] if found.comparison else [])]


def names_of(found: RunContents) -> dict[str, str]:
    """The names on the page of an update's models; all others keep their labels."""
    return {"child": str(found.version), "parent": str(found.request.parent)} if found.request else {}


def _measured_comparison(
    title: str,
    results: dict[str, Scores],
    comparison: Comparison | None,
    pair: tuple[str, str],
    names: dict[str, str],
) -> ModelComparison:
    tasks = {label: _main(scores) for label, scores in results.items()}
    means = {label: _main(mean_scores(scores)) for label, scores in results.items()}
    ours, theirs = pair

    def changes(
        differences: dict[str, Difference] | None, scores: dict[str, dict[str, float]]
    ) -> dict[str, ScoreChange]:
        if differences is not None:
            return _compared(differences)
        return {name: ScoreChange(scores[ours][name], scores[theirs][name]) for name in scores[ours]}

    return ModelComparison(
        title=title,
        metric=main_metric(results[ours]),
        ours=names.get(ours, ours),
        theirs=names.get(theirs, theirs),
        tasks=changes(comparison.tasks if comparison else None, tasks),
        means=changes(comparison.means if comparison else None, means),
        others={label: (tasks[label], means[label]) for label in results if label not in pair},
    )


def _main(scores: Scores) -> dict[str, float]:
    return {name: main_score(of_task) for name, of_task in scores.items()}


def _compared(differences: dict[str, Difference]) -> dict[str, ScoreChange]:
    """The differences of a stored comparison (`boom_ray.evaluation.compare`)."""
    return {
        name: ScoreChange(
            ours=difference.ours,
            theirs=difference.theirs,
            interval=None
            if difference.low is None or difference.high is None
            else (difference.low, difference.high),
            verdict=difference.verdict,
            queries=difference.queries or None,
        )
        for name, difference in differences.items()
    }


def _baseline_comparison(comparison: Comparison) -> ModelComparison:
    """The comparison with the model that was trained on the full corpus."""
    return ModelComparison(
        title=AGAINST_BASELINE,
        metric=comparison.metric,
        ours=comparison.ours,
        theirs=comparison.theirs,
        tasks=_compared(comparison.tasks),
        means=_compared(comparison.means),
        others={},
    )


@dataclass(frozen=True)
class ChartRow:
    """A task or a mean in a chart.

    Attributes:
        marks: Class, position and title of each model's mark on the axis of scores, in percent.
        span: Start and width of the line between the two models, in percent.
        point: Position of the difference on its axis, in percent.
        reach: The ends of its interval on that axis.
    """

    label: str
    title: str
    is_mean: bool
    change: ScoreChange
    marks: list[tuple[str, float, str]]
    span: tuple[float, float]
    point: float
    reach: tuple[float, float] | None


@dataclass(frozen=True)
class ComparisonChart:
    """A comparison as a chart: groups of rows with two axes."""

    comparison: ModelComparison
    scores: Axis
    differences: Axis
    groups: list[tuple[str, list[ChartRow]]]


def chart(comparison: ModelComparison) -> ComparisonChart:
    """Lay out a comparison."""
    changes = [*comparison.tasks.values(), *comparison.means.values()]
    values = [value for change in changes for value in (change.ours, change.theirs)]
    values += [
        value for tasks, means in comparison.others.values() for value in (*tasks.values(), *means.values())
    ]
    ends = [end for change in changes for end in change.interval or (change.difference,)]
    empty = ComparisonChart(comparison, axis(values), axis([0.0, *ends], with_sign=True), [])
    groups = []
    for group, tasks in grouped(list(comparison.tasks)).items():
        rows = [_row(empty, task, task.rpartition("/")[2]) for task in tasks]
        if group:
            rows.append(_row(empty, group, f"mean {readable(group)}", is_mean=True))
        groups.append((readable(group), rows))
    groups.append(("", [_row(empty, "all", "mean of all tasks", is_mean=True)]))
    return replace(empty, groups=groups)


def _row(chart: ComparisonChart, name: str, label: str, is_mean: bool = False) -> ChartRow:
    """A task or a mean, positioned on the axes of a chart."""
    comparison, scores, differences = chart.comparison, chart.scores, chart.differences
    change = (comparison.means if is_mean else comparison.tasks)[name]
    shown = [("other", label, both[is_mean][name]) for label, both in comparison.others.items()]
    shown += [("theirs", comparison.theirs, change.theirs), ("ours", comparison.ours, change.ours)]
    left, right = sorted((scores.at(change.ours), scores.at(change.theirs)))
    low, high = change.interval or (None, None)
    return ChartRow(
        label=label,
        title=name,
        is_mean=is_mean,
        change=change,
        marks=[(kind, scores.at(value), f"{label} {value:.3f}") for kind, label, value in shown],
        span=(left, round(right - left, 2)),
        point=differences.at(change.difference),
        reach=None if low is None or high is None else (differences.at(low), differences.at(high)),
    )


def grouped(tasks: list[str]) -> dict[str, list[str]]:
    """The tasks of each group; those without a group come first, under an empty name."""
    groups = task_groups(tasks)
    alone = [task for task in tasks if "/" not in task]
    return ({"": alone} if alone else {}) | {name: groups[name] for name in groups if name != "all"}


def readable(group: str) -> str:
    """`out_of_domain` as `out of domain`."""
    return group.replace("_", " ")


@dataclass(frozen=True)
class ScoreCell:
    """A score; `strength` is its difference from the reference in percent of the table's largest one."""

    text: str
    tone: str
    strength: int
    best: bool


@dataclass(frozen=True)
class PageTable:
    """One metric of every model on every task."""

    title: str
    labels: list[str]
    rows: list[tuple[str, bool, list[ScoreCell]]]


def tables(found: RunContents) -> list[PageTable]:
    """A table for each metric of each evaluation, the main scores first."""
    metrics = found.record.metrics if found.record else ModelMetrics()
    parts = {"evaluation": metrics.evaluation} if metrics.evaluation else {}
    scores_of_sets = metrics.update.scores if metrics.update else {}
    parts |= {kind: scores_of_sets[kind] for kind in ("new", "old") if kind in scores_of_sets}
    return [
        _table(f"{metric}, {kind} tasks" if found.request else metric, scores)
        for kind, results in parts.items()
        for metric, scores in _by_metric(found, results).items()
    ]


def _by_metric(found: RunContents, results: dict[str, Scores]) -> dict[str, dict[str, Scores]]:
    """Metric -> model, by its name on the page -> task -> that metric alone, for tasks that report it."""
    names, first = names_of(found), next(iter(results.values()))
    named = {names.get(label, label): scores for label, scores in results.items()}
    metric = main_metric(first)
    mains = {
        label: {task: {metric: main_score(scores)} for task, scores in tasks.items()}
        for label, tasks in named.items()
    }
    if found.comparison:
        full = {task: {metric: difference.theirs} for task, difference in found.comparison.tasks.items()}
        mains[found.comparison.theirs] = full
    further = dict.fromkeys(name for scores in first.values() for name in list(scores)[1:])
    return {metric: mains} | {
        name: {
            label: {task: {name: scores[name]} for task, scores in tasks.items() if name in scores}
            for label, tasks in named.items()
        }
        for name in further
    }


def _table(title: str, results: dict[str, Scores]) -> PageTable:
    """One metric; colors show differences from the first model."""
    first = next(iter(results.values()))
    means = [mean_scores(scores) for scores in results.values()]
    rows = [(task, False, [main_score(scores[task]) for scores in results.values()]) for task in first]
    rows += [
        (f"mean {readable(group)}", True, [main_score(mean[group]) for mean in means]) for group in means[0]
    ]
    largest = max(abs(value - values[0]) for _, _, values in rows for value in values) or 1.0
    return PageTable(
        title, list(results), [(name, is_mean, _cells(values, largest)) for name, is_mean, values in rows]
    )


def _cells(row: list[float], largest: float) -> list[ScoreCell]:
    return [
        ScoreCell(
            text=f"{value:.3f}",
            tone="better" if value > row[0] else "worse",
            strength=round(100 * abs(value - row[0]) / largest),
            best=value == max(row),
        )
        for value in row
    ]

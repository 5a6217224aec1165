"""How good the version is: on every task, against what it came from and beside all models measured."""

from dataclasses import dataclass, replace

from boom_ray.artifacts.contents import Comparison, Difference, ModelMetrics, UpdateMetrics
from boom_ray.report.collect import Found
from boom_ray.report.scale import Axis, axis
from boom_ray.runs.scores import Scores, main_metric, main_score, mean_scores, task_groups


@dataclass(frozen=True)
class Change:
    """Two scores on a task or in a mean of tasks; the interval of their difference is None if unknown."""

    ours: float
    theirs: float
    interval: tuple[float, float] | None = None
    verdict: str = "unknown"
    queries: int | None = None

    @property
    def difference(self) -> float:
        """Ours less theirs."""
        return self.ours - self.theirs


@dataclass(frozen=True)
class Contest:
    """One model against another.

    Attributes:
        title: What is compared: `Against the base`, `Old tasks`.
        metric: Of all tasks, or `MAIN_SCORE`.
        ours: What the page calls our model.
        theirs: What it calls the other.
        tasks: Of every task.
        means: Of every group of tasks, last that of `all`.
        others: Scores of more models, by name: on every task, and in every mean.
    """

    title: str
    metric: str
    ours: str
    theirs: str
    tasks: dict[str, Change]
    means: dict[str, Change]
    others: dict[str, tuple[dict[str, float], dict[str, float]]]

    @property
    def overall(self) -> Change:
        """In the mean of all tasks."""
        return self.means["all"]

    def judged(self, verdict: str) -> list[str]:
        """The tasks of one verdict, those with the largest difference first."""
        found = [task for task, change in self.tasks.items() if change.verdict == verdict]
        return sorted(found, key=lambda task: -abs(self.tasks[task].difference))


def contests(found: Found) -> list[Contest]:
    """The comparisons that were measured, the most important first; empty if nothing was."""
    metrics, names = found.record.metrics if found.record else ModelMetrics(), names_of(found)
    if found.request:
        update = metrics.update or UpdateMetrics()
        return [
            _contest(title, update.scores[kind], update.comparisons.get(kind), ("child", "parent"), names)
            for kind, title in (("new", "New tasks"), ("old", "Old tasks"))
            if kind in update.scores
        ]
    if not metrics.evaluation:
        return []
    first = _contest("Against the base", metrics.evaluation, metrics.comparison, ("merged", "base"), names)
    return [first, *([_against_full(found.comparison)] if found.comparison else [])]


def names_of(found: Found) -> dict[str, str]:
    """What the page calls the models of an update; all others have their own names."""
    return {"child": str(found.version), "parent": str(found.request.parent)} if found.request else {}


def _contest(
    title: str,
    results: dict[str, Scores],
    comparison: Comparison | None,
    pair: tuple[str, str],
    names: dict[str, str],
) -> Contest:
    tasks = {label: _main(scores) for label, scores in results.items()}
    means = {label: _main(mean_scores(scores)) for label, scores in results.items()}
    ours, theirs = pair

    def changes(differences: dict[str, Difference] | None, scores: Scores) -> dict[str, Change]:
        if differences is not None:
            return _compared(differences)
        return {place: Change(scores[ours][place], scores[theirs][place]) for place in scores[ours]}

    return Contest(
        title=title,
        metric=main_metric(results[ours]),
        ours=names.get(ours, ours),
        theirs=names.get(theirs, theirs),
        tasks=changes(comparison.tasks if comparison else None, tasks),
        means=changes(comparison.means if comparison else None, means),
        others={label: (tasks[label], means[label]) for label in results if label not in pair},
    )


def _main(scores: Scores) -> dict[str, float]:
    return {place: main_score(found) for place, found in scores.items()}


def _compared(entries: dict[str, Difference]) -> dict[str, Change]:
    """Tasks or means as `boom_ray.evaluation.compare` has them."""
    return {
        place: Change(
            ours=entry.ours,
            theirs=entry.theirs,
            interval=None if entry.low is None or entry.high is None else (entry.low, entry.high),
            verdict=entry.verdict,
            queries=entry.queries or None,
        )
        for place, entry in entries.items()
    }


def _against_full(comparison: Comparison) -> Contest:
    """What `boom-ray run --baseline` wrote."""
    return Contest(
        title="Against one model of the full corpus",
        metric=comparison.metric,
        ours=comparison.ours,
        theirs=comparison.theirs,
        tasks=_compared(comparison.tasks),
        means=_compared(comparison.means),
        others={},
    )


@dataclass(frozen=True)
class Line:
    """A task or a mean as the page draws it: positions in percent of two axes."""

    label: str
    title: str
    is_mean: bool
    change: Change
    marks: list[tuple[str, float, str]]
    span: tuple[float, float]
    point: float
    reach: tuple[float, float] | None


@dataclass(frozen=True)
class Board:
    """A contest as the page draws it: groups of lines under two axes."""

    contest: Contest
    scores: Axis
    differences: Axis
    groups: list[tuple[str, list[Line]]]


def board(contest: Contest) -> Board:
    """Lay a contest out."""
    changes = [*contest.tasks.values(), *contest.means.values()]
    values = [value for change in changes for value in (change.ours, change.theirs)]
    values += [
        value for tasks, means in contest.others.values() for value in (*tasks.values(), *means.values())
    ]
    ends = [end for change in changes for end in change.interval or (change.difference,)]
    empty = Board(contest, axis(values), axis([0.0, *ends], with_sign=True), [])
    groups = []
    for group, tasks in grouped(list(contest.tasks)).items():
        lines = [_line(empty, task, task.rpartition("/")[2]) for task in tasks]
        if group:
            lines.append(_line(empty, group, f"mean {spoken(group)}", is_mean=True))
        groups.append((spoken(group), lines))
    groups.append(("", [_line(empty, "all", "mean of all tasks", is_mean=True)]))
    return replace(empty, groups=groups)


def _line(board: Board, place: str, label: str, is_mean: bool = False) -> Line:
    """A task or a mean on the axes of a board."""
    contest, scores, differences = board.contest, board.scores, board.differences
    change = (contest.means if is_mean else contest.tasks)[place]
    shown = [("other", name, both[is_mean][place]) for name, both in contest.others.items()]
    shown += [("theirs", contest.theirs, change.theirs), ("ours", contest.ours, change.ours)]
    left, right = sorted((scores.at(change.ours), scores.at(change.theirs)))
    low, high = change.interval or (None, None)
    return Line(
        label=label,
        title=place,
        is_mean=is_mean,
        change=change,
        marks=[(kind, scores.at(value), f"{name} {value:.3f}") for kind, name, value in shown],
        span=(left, round(right - left, 2)),
        point=differences.at(change.difference),
        reach=None if low is None or high is None else (differences.at(low), differences.at(high)),
    )


def grouped(tasks: list[str]) -> dict[str, list[str]]:
    """Tasks by group; those without one under an empty name, first."""
    found = task_groups(tasks)
    alone = [task for task in tasks if "/" not in task]
    return ({"": alone} if alone else {}) | {name: found[name] for name in found if name != "all"}


def spoken(group: str) -> str:
    """`out_of_domain` as people write it."""
    return group.replace("_", " ")


@dataclass(frozen=True)
class Cell:
    """A score, its difference to the reference in percent of the largest, and whether none is better."""

    text: str
    tone: str
    strength: int
    best: bool


@dataclass(frozen=True)
class Table:
    """Every model on every task, in one metric."""

    title: str
    labels: list[str]
    rows: list[tuple[str, bool, list[Cell]]]


def tables(found: Found) -> list[Table]:
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


def _by_metric(found: Found, results: dict[str, Scores]) -> dict[str, dict[str, Scores]]:
    """Metric -> model, by the page's name -> task -> that metric alone, of the tasks that have it."""
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


def _table(title: str, results: dict[str, Scores]) -> Table:
    """One metric; the first model is the reference that the others are coloured by."""
    first = next(iter(results.values()))
    means = [mean_scores(scores) for scores in results.values()]
    rows = [(task, False, [main_score(scores[task]) for scores in results.values()]) for task in first]
    rows += [
        (f"mean {spoken(group)}", True, [main_score(mean[group]) for mean in means]) for group in means[0]
    ]
    largest = max(abs(value - values[0]) for _, _, values in rows for value in values) or 1.0
    return Table(
        title, list(results), [(name, is_mean, _cells(values, largest)) for name, is_mean, values in rows]
    )


def _cells(row: list[float], largest: float) -> list[Cell]:
    return [
        Cell(
            text=f"{value:.3f}",
            tone="better" if value > row[0] else "worse",
            strength=round(100 * abs(value - row[0]) / largest),
            best=value == max(row),
        )
        for value in row
    ]

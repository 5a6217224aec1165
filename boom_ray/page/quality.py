"""How good the version is: on every task, against what it came from and beside all models measured."""

from dataclasses import dataclass
from typing import Any

from boom_ray import report
from boom_ray.page.collect import Found
from boom_ray.page.scale import Axis, axis
from boom_ray.report import MAIN_METRIC, Scores


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
        ours: What the page calls our model.
        theirs: What it calls the other.
        tasks: Of every task.
        means: Of every group of tasks, last that of `all`.
        others: Scores of more models, by name, on every task and group.
    """

    title: str
    ours: str
    theirs: str
    tasks: dict[str, Change]
    means: dict[str, Change]
    others: dict[str, dict[str, float]]

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
    metrics = found.record.metrics if found.record else {}
    if found.request:
        names = {"child": str(found.version), "parent": found.request["parent"], "update": "update"}
        return [
            _contest(title, metrics[kind], metrics.get("comparison", {}).get(kind), "child", "parent", names)
            for kind, title in (("new", "New tasks"), ("old", "Old tasks"))
            if kind in metrics
        ]
    if "evaluation" not in metrics:
        return []
    names = {label: label for label in metrics["evaluation"]}
    results, comparison = metrics["evaluation"], metrics.get("comparison")
    first = _contest("Against the base", results, comparison, "merged", "base", names)
    return [first, *([_against_full(found.comparison)] if found.comparison else [])]


def _contest(
    title: str, results: dict[str, Scores], comparison: Any, ours: str, theirs: str, names: dict[str, str]
) -> Contest:
    scores = {label: _main(results[label]) for label in results}
    changes = {
        place: Change(scores[ours][place], scores[theirs][place], **_interval(comparison, place))
        for place in scores[ours]
    }
    tasks = list(results[ours])
    others = {names[label]: scores[label] for label in results if label not in (ours, theirs)}
    return Contest(
        title=title,
        ours=names[ours],
        theirs=names[theirs],
        tasks={task: changes[task] for task in tasks},
        means={group: changes[f"mean {group}"] for group in report.groups(tasks)},
        others=others,
    )


def _main(scores: Scores) -> dict[str, float]:
    """The main metric of one model: by task, and by `mean GROUP`."""
    means = {f"mean {group}": found[MAIN_METRIC] for group, found in report.means(scores).items()}
    return {task: found[MAIN_METRIC] for task, found in scores.items()} | means


def _interval(comparison: Any, place: str) -> dict[str, Any]:
    if not comparison:
        return {}
    group = place.removeprefix("mean ")
    found = comparison["tasks"].get(place) or comparison["means"][group]
    return {key: found[key] for key in ("verdict", "queries")} | {"interval": (found["low"], found["high"])}


def _against_full(comparison: dict[str, Any]) -> Contest:
    """What `boom-ray run --baseline` wrote."""

    def changes(entries: dict[str, Any]) -> dict[str, Change]:
        return {
            name: Change(e["ours"], e["theirs"], (e["low"], e["high"]), e["verdict"], e["queries"])
            for name, e in entries.items()
        }

    return Contest(
        title="Against one model of the full corpus",
        ours=comparison["ours"],
        theirs=comparison["theirs"],
        tasks=changes(comparison["tasks"]),
        means=changes(comparison["means"]),
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
    changes = list({**contest.tasks, **contest.means}.values())
    values = [value for change in changes for value in (change.ours, change.theirs)]
    scores = axis(values + [value for scores in contest.others.values() for value in scores.values()])
    ends = [end for change in changes for end in change.interval or (change.difference,)]
    differences = axis([0.0, *ends], with_sign=True)

    def line(place: str, label: str, change: Change) -> Line:
        others = {name: found[place] for name, found in contest.others.items()}
        shown = [("other", name, value) for name, value in others.items()]
        shown += [("theirs", contest.theirs, change.theirs), ("ours", contest.ours, change.ours)]
        ends = sorted((scores.at(change.ours), scores.at(change.theirs)))
        return Line(
            label=label,
            title=place,
            is_mean=place.startswith("mean "),
            change=change,
            marks=[(kind, scores.at(value), f"{name} {value:.3f}") for kind, name, value in shown],
            span=(ends[0], round(ends[1] - ends[0], 2)),
            point=differences.at(change.difference),
            reach=change.interval
            and (differences.at(change.interval[0]), differences.at(change.interval[1])),
        )

    groups = []
    for group, tasks in grouped(list(contest.tasks)).items():
        lines = [line(task, task.rpartition("/")[2], contest.tasks[task]) for task in tasks]
        if group:
            lines.append(line(f"mean {group}", f"mean {spoken(group)}", contest.means[group]))
        groups.append((spoken(group), lines))
    groups.append(("", [line("mean all", "mean of all tasks", contest.overall)]))
    return Board(contest, scores, differences, groups)


def grouped(tasks: list[str]) -> dict[str, list[str]]:
    """Tasks by group; those without one under an empty name, first."""
    found = report.groups(tasks)
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
    """A table for each metric of each evaluation, the main metric first."""
    metrics = found.record.metrics if found.record else {}
    parts = {kind: metrics[kind] for kind in ("evaluation", "old", "new") if kind in metrics}
    return [
        _table(f"{metric}, {kind} tasks" if kind != "evaluation" else metric, results, metric)
        for kind, results in parts.items()
        for metric in next(iter(next(iter(results.values())).values()))
    ]


def _table(title: str, results: dict[str, Scores], metric: str) -> Table:
    """The first model is the reference that the others are coloured by."""
    means = {label: report.means(scores) for label, scores in results.items()}
    places = {
        task: [results[label][task][metric] for label in results] for task in next(iter(results.values()))
    }
    averages = {
        f"mean {spoken(group)}": [means[label][group][metric] for label in results]
        for group in next(iter(means.values()))
    }
    values = [*places.values(), *averages.values()]
    largest = max(abs(value - row[0]) for row in values for value in row) or 1.0
    rows = [(name, False, _cells(row, largest)) for name, row in places.items()]
    rows += [(name, True, _cells(row, largest)) for name, row in averages.items()]
    return Table(title, list(results), rows)


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

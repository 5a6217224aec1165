"""The top of the page: the model, whether it is better, by how much, and the tasks on which it is not."""

from collections.abc import Iterator
from dataclasses import dataclass

from boom_ray import storage
from boom_ray.report.collect import RunContents
from boom_ray.report.quality import AGAINST_BASE, AGAINST_BASELINE, ModelComparison, ScoreChange, readable
from boom_ray.report.scale import count, duration, moment, names, signed
from boom_ray.report.schedule import Timeline, cost
from boom_ray.runs.scores import MAIN_SCORE
from boom_ray.runs.updates import UpdateRequest

VERDICTS = {
    "better": "better than",
    "worse": "worse than",
    "undecided": "not significantly better or worse than",
}
OTHERS = {
    AGAINST_BASE: "its base model",
    AGAINST_BASELINE: "one model of the full corpus",
}
SCORES = {
    "ndcg@10": "Scores are nDCG@10, from 0 to 1: how high the positives rank among the first ten results.",
    MAIN_SCORE: "Scores are the main metric of each task: nDCG@10 of retrieval, MAP of reranking, "
    "Spearman's correlation of STS, accuracy of classification, V-measure of clustering; 1 is best.",
}
INTERVALS = (
    " Intervals are 95 % confidence intervals of the difference, by a paired bootstrap over queries; "
    "better and worse mean that the interval excludes zero."
)


@dataclass(frozen=True)
class Tile:
    """A figure at the top of the page; `tone` is a verdict, or empty."""

    value: str
    label: str
    note: str
    tone: str = ""


@dataclass(frozen=True)
class Summary:
    """The top of the page: a sentence, points with their labels, and figures."""

    headline: str
    points: list[tuple[str, str]]
    tiles: list[Tile]


def summary(found: RunContents, comparisons: list[ModelComparison], timeline: Timeline | None) -> Summary:
    """Summarize the rest of the page."""
    points = [("Model", _made(found))]
    points += [(comparison.title, _outcome(comparison)) for comparison in comparisons]
    points += [*_best_bag(found, comparisons), *_cost(found, timeline)]
    if comparisons:
        with_interval = comparisons[0].overall.interval is not None
        meaning = SCORES.get(comparisons[0].metric, f"Scores are {comparisons[0].metric}; 1 is best.")
        points.append(("Scores", meaning + INTERVALS * with_interval))
    elif found.record:
        points.append(("Quality", "Not measured: the recipe names no tasks (evaluate.data)."))
    return Summary(_headline(found, comparisons), points, list(_tiles(found, comparisons, timeline)))


def base_of(found: RunContents) -> str:
    """Name of the base model, with the directory that contains it, like the owner of a model on the hub."""
    return "/".join(storage.without_scheme(found.recipe.base_model.path).split("/")[-2:])


def _headline(found: RunContents, comparisons: list[ModelComparison]) -> str:
    if found.record is None:
        ready = sum(model.record is not None for model in found.bags)
        trained = f"{ready} of {count(len(found.bags), 'model')} trained"
        return f"{found.name} is not finished: {trained}, none merged"
    if not comparisons:
        return f"{found.name} is published, but not measured"
    outcomes: dict[str, list[str]] = {}
    for comparison in comparisons:
        where = f"on the {comparison.title.lower()} " if found.request else ""
        outcome = f"{_verdict(comparison.overall)} {OTHERS.get(comparison.title, comparison.theirs)}"
        outcomes.setdefault(outcome, []).append(f"{where}({_relative(comparison.overall)})")
    clauses = [f"{outcome} {' and '.join(parts)}" for outcome, parts in outcomes.items()]
    return f"{found.name} is {', and '.join(clauses)}"


def _verdict(change: ScoreChange) -> str:
    return VERDICTS.get(change.verdict, "ahead of" if change.difference > 0 else "not ahead of")


def _relative(change: ScoreChange) -> str:
    if not change.theirs:
        return signed(change.difference)
    return f"{signed(100 * change.difference / change.theirs, 1)}\N{NO-BREAK SPACE}%"


def _made(found: RunContents) -> str:
    if found.request:
        return _updated(found, found.request)
    if not found.bags or found.corpus is None:
        return f"A run that has begun, with the base model {base_of(found)}."
    tasks = found.corpus.config.tasks
    ratios = names(list(dict.fromkeys(f"{bag.bag.ratio:g}" for bag in found.bags)), most=12)
    rows = sum(task.rows for task in tasks.values())
    return (
        f"A text embedding model, {'' if found.record else 'to be '}merged from {len(found.bags)} models. "
        f"Each is a copy of the base model {base_of(found)}, fine-tuned on its own sample "
        f"({ratios} %) of {rows:,} rows in {count(len(tasks), 'task')}."
    )


def _updated(found: RunContents, request: UpdateRequest) -> str:
    new = [task.name for task in request.tasks]
    counts = found.corpus.config.tasks if found.corpus else {}
    rows = sum(counts[task].rows for task in new if task in counts)
    rest = "all models before it" if request.flat else request.parent
    return (
        f"An update of {request.parent} with {rows:,} new rows of {count(len(new), 'task')} ({names(new)}), "
        f"without training on the whole corpus again. One model was trained, a copy of the base model "
        f"{base_of(found)}, on these rows and {request.core_percent:g} % of the earlier ones, and merged "
        f"with {rest}."
    )


def _outcome(comparison: ModelComparison) -> str:
    """The difference in the mean of all tasks and of each group, and the tasks by verdict."""
    overall, interval = comparison.overall, comparison.overall.interval
    ends = f", interval {signed(interval[0])} to {signed(interval[1])}" if interval else ""
    text = (
        f"{overall.ours:.3f} compared with {overall.theirs:.3f} on average: {signed(overall.difference)} "
        f"({_relative(overall)}{ends}). "
    )
    groups = [
        f"{readable(name)} {signed(change.difference)}"
        + f" ({change.verdict})" * (change.interval is not None)
        for name, change in comparison.means.items()
        if name != "all"
    ]
    if len(groups) > 1:
        text += f"By group: {', '.join(groups)}. "
    return text + _tasks_by_verdict(comparison)


def _tasks_by_verdict(comparison: ModelComparison) -> str:
    if comparison.overall.interval is None:
        behind = [task for task, change in comparison.tasks.items() if change.difference < 0]
        return f"Behind on {names(behind)}." if behind else "Behind on no task."
    worse = [
        f"{task} ({signed(comparison.tasks[task].difference)})" for task in comparison.tasks_with("worse")
    ]
    better, undecided = len(comparison.tasks_with("better")), comparison.tasks_with("undecided")
    text = f"Better on {better or 'none'} of {count(len(comparison.tasks), 'task')}, "
    text += f"worse on {names(worse)}" if worse else "worse on none"
    return text + (f", undecided on {names(undecided)}." if undecided else ".")


def _best_bag(found: RunContents, comparisons: list[ModelComparison]) -> Iterator[tuple[str, str]]:
    if found.request or not comparisons or not comparisons[0].others:
        return
    bags = {name: means["all"] for name, (_, means) in comparisons[0].others.items()}
    best = max(bags, key=lambda name: bags[name])
    ahead = comparisons[0].overall.ours - bags[best]
    yield (
        "Compared with its bags",
        f"The best model of a bag, {best}, has {bags[best]:.3f} on average; the merged model is "
        f"{abs(ahead):.3f} {'ahead' if ahead > 0 else 'behind'}.",
    )


def _cost(found: RunContents, timeline: Timeline | None) -> Iterator[tuple[str, str]]:
    trained = cost(found, found.bags)
    if trained is None:
        return
    text = (
        f"{count(trained.steps, 'training step')} read {trained.queries:,} rows ({trained.passes:.1f} passes "
        f"over the data) in {duration(trained.rank_seconds)} of {trained.device} time."
    )
    if timeline:
        text += f" The run took {duration(timeline.seconds)}."
    update = found.record.metrics.update if found.record else None
    spent = update.cost if update else None
    if spent:
        text += (
            f" Training all bags again on all data would take {spent.all_steps:,} steps, "
            f"{spent.all_rows:,} rows and about {spent.all_tokens:,} tokens; the update took "
            f"{spent.rows / spent.all_rows:.0%} of these rows and "
            f"{spent.tokens / spent.all_tokens:.0%} of the tokens."
        )
    yield "Cost", text


def _tiles(
    found: RunContents, comparisons: list[ModelComparison], timeline: Timeline | None
) -> Iterator[Tile]:
    for comparison in comparisons:
        change, interval = comparison.overall, comparison.overall.interval
        note = f"{signed(interval[0])} to {signed(interval[1])}" if interval else ""
        kind = f"{comparison.title.lower()}: " if found.request else ""
        label = f"{kind}{change.ours:.3f}, {comparison.theirs} {change.theirs:.3f}"
        yield Tile(signed(change.difference), label, note, change.verdict)
    if comparisons and comparisons[0].overall.interval:
        first = comparisons[0]
        better, worse = len(first.tasks_with("better")), len(first.tasks_with("worse"))
        kind = first.title.lower() if found.request else "tasks"
        note = f"{worse} worse, {len(first.tasks) - better - worse} undecided"
        yield Tile(f"{better} of {len(first.tasks)}", f"{kind} better than {first.theirs}", note)
    trained = cost(found, found.bags)
    if trained:
        note = f"{trained.steps:,} steps, {trained.passes:.1f} passes over the data"
        yield Tile(duration(trained.rank_seconds), f"{trained.device} time of the training", note)
    if timeline:
        yield Tile(duration(timeline.seconds), "duration of the run", f"from {moment(timeline.began)}")

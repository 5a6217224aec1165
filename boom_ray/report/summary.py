"""The page in plain words: what was made, whether it is better, by how much, and where it is not."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from boom_ray import storage
from boom_ray.report.collect import Found
from boom_ray.report.quality import Change, Contest, spoken
from boom_ray.report.scale import count, duration, moment, names, signed
from boom_ray.report.schedule import Timeline, cost
from boom_ray.runs.scores import MAIN_SCORE

VERDICTS = {
    "better": "better than",
    "worse": "worse than",
    "undecided": "not clearly better or worse than",
}
OTHERS = {
    "Against the base": "its base model",
    "Against one model of the full corpus": "one model of the full corpus",
}
SCORES = {
    "ndcg@10": "Scores are nDCG@10, from 0 to 1: how high the right answers stand among the first ten.",
    MAIN_SCORE: "Scores are the main one of each task: nDCG@10 of retrieval, MAP of reranking, "
    "Spearman's correlation of STS, accuracy of classification, V-measure of clustering; 1 is best.",
}
INTERVALS = (
    " An interval holds the difference with 95 % confidence, as far as the choice of the queries goes; "
    "better and worse mean that all of it lies on one side of zero."
)


@dataclass(frozen=True)
class Tile:
    """A figure on top of the page; `tone` is a verdict, or empty."""

    value: str
    label: str
    note: str
    tone: str = ""


@dataclass(frozen=True)
class Summary:
    """What stands on top: one sentence, points with what each is about, and figures."""

    headline: str
    points: list[tuple[str, str]]
    tiles: list[Tile]


def summary(found: Found, contests: list[Contest], timeline: Timeline | None) -> Summary:
    """Say what the rest of the page shows."""
    points = [("What it is", _made(found))]
    points += [(contest.title, _outcome(contest)) for contest in contests]
    points += [*_beside_bags(found, contests), *_cost(found, timeline)]
    if contests:
        known = contests[0].overall.interval is not None
        meaning = SCORES.get(contests[0].metric, f"Scores are {contests[0].metric}; 1 is best.")
        points.append(("How to read it", meaning + INTERVALS * known))
    elif found.record:
        points.append(
            ("Quality", "It has not been measured: the recipe names no data for it (evaluate.data).")
        )
    return Summary(_headline(found, contests), points, list(_tiles(found, contests, timeline)))


def base_of(found: Found) -> str:
    """The base model's name, with the directory it lies in, as the hub's have an owner."""
    path = found.recipe.get("base_model", {}).get("path", "the base")
    return "/".join(storage.without_scheme(path).split("/")[-2:])


def _headline(found: Found, contests: list[Contest]) -> str:
    if found.record is None:
        ready = sum(model.record is not None for model in found.bags)
        trained = f"{ready} of {count(len(found.bags), 'model')} trained"
        return f"{found.name} is not finished: {trained}, none merged"
    if not contests:
        return f"{found.name} is made, and has not been measured"
    said: dict[str, list[str]] = {}
    for contest in contests:
        where = f"on the {contest.title.lower()} " if found.request else ""
        outcome = f"{_verdict(contest.overall)} {OTHERS.get(contest.title, contest.theirs)}"
        said.setdefault(outcome, []).append(f"{where}({_relative(contest.overall)})")
    outcomes = [f"{outcome} {' and '.join(places)}" for outcome, places in said.items()]
    return f"{found.name} is {', and '.join(outcomes)}"


def _verdict(change: Change) -> str:
    return VERDICTS.get(change.verdict, "ahead of" if change.difference > 0 else "not ahead of")


def _relative(change: Change) -> str:
    if not change.theirs:
        return signed(change.difference)
    return f"{signed(100 * change.difference / change.theirs, 1)}\N{NO-BREAK SPACE}%"


def _made(found: Found) -> str:
    if found.request:
        return _updated(found, found.request)
    if not found.bags or found.corpus is None:
        return f"A run that has begun, from the base model {base_of(found)}."
    tasks = found.corpus.config["tasks"]
    shares = names(list(dict.fromkeys(f"{bag.ratio:g}" for bag in found.bags)), most=12)
    rows = sum(task["rows"] for task in tasks.values())
    return (
        f"One text embedding model, {'' if found.record else 'to be '}merged from {len(found.bags)} models. "
        f"Each of them is a copy of the base model {base_of(found)} that was trained on a sample of its own "
        f"({shares} %) of {rows:,} rows in {count(len(tasks), 'task')}."
    )


def _updated(found: Found, request: dict[str, Any]) -> str:
    new = [task["name"] for task in request["tasks"]]
    counts = found.corpus.config["tasks"] if found.corpus else {}
    rows = sum(counts[task]["rows"] for task in new if task in counts)
    rest = "all models before it" if request["flat"] else request["parent"]
    return (
        f"{request['parent']}, with {rows:,} new rows of {count(len(new), 'task')} ({names(new)}) brought in "
        f"without training on everything again. One small model was trained, a copy of the base model "
        f"{base_of(found)}, on these rows and {request['core_percent']:g} % of the earlier ones, and merged "
        f"with {rest}."
    )


def _outcome(contest: Contest) -> str:
    """By how much in the mean of all tasks and of each group, and on which tasks not."""
    overall, interval = contest.overall, contest.overall.interval
    sure = f", interval {signed(interval[0])} to {signed(interval[1])}" if interval else ""
    text = (
        f"{overall.ours:.3f} against {overall.theirs:.3f} on average: {signed(overall.difference)} "
        f"({_relative(overall)}{sure}). "
    )
    groups = [
        f"{spoken(name)} {signed(change.difference)}" + f" ({change.verdict})" * (change.interval is not None)
        for name, change in contest.means.items()
        if name != "all"
    ]
    if len(groups) > 1:
        text += f"By group: {', '.join(groups)}. "
    return text + _places(contest)


def _places(contest: Contest) -> str:
    if contest.overall.interval is None:
        behind = [task for task, change in contest.tasks.items() if change.difference < 0]
        return f"Behind on {names(behind)}." if behind else "Behind on no task."
    worse = [f"{task} ({signed(contest.tasks[task].difference)})" for task in contest.judged("worse")]
    better, undecided = len(contest.judged("better")), contest.judged("undecided")
    text = f"Better on {better or 'none'} of {count(len(contest.tasks), 'task')}, "
    text += f"worse on {names(worse)}" if worse else "worse on none"
    return text + (f", undecided on {names(undecided)}." if undecided else ".")


def _beside_bags(found: Found, contests: list[Contest]) -> Iterator[tuple[str, str]]:
    if found.request or not contests or not contests[0].others:
        return
    bags = {name: means["all"] for name, (_, means) in contests[0].others.items()}
    best = max(bags, key=lambda name: bags[name])
    ahead = contests[0].overall.ours - bags[best]
    how = f"{abs(ahead):.3f} {'ahead of' if ahead > 0 else 'behind'} that"
    yield (
        "Against its parts",
        f"The best of them, {best}, has {bags[best]:.3f} on average: the merged model is {how}.",
    )


def _cost(found: Found, timeline: Timeline | None) -> Iterator[tuple[str, str]]:
    trained = cost(found, found.bags)
    if trained is None:
        return
    text = (
        f"{count(trained.steps, 'training step')} read {trained.queries:,} rows ({trained.passes:.1f} passes "
        f"over the data) in {duration(trained.rank_seconds)} of {trained.device} time."
    )
    if timeline:
        text += f" From first to last it took {duration(timeline.seconds)}."
    told = found.record.metrics.get("cost") if found.record else None
    if told:
        text += (
            f" Training all bags again on all data would be {told['all_steps']:,} steps, "
            f"{told['all_rows']:,} rows and about {told['all_tokens']:,} tokens; the update had "
            f"{told['rows'] / told['all_rows']:.0%} of these rows and "
            f"{told['tokens'] / told['all_tokens']:.0%} of the tokens."
        )
    yield "Cost", text


def _tiles(found: Found, contests: list[Contest], timeline: Timeline | None) -> Iterator[Tile]:
    for contest in contests:
        change, interval = contest.overall, contest.overall.interval
        note = f"{signed(interval[0])} to {signed(interval[1])}" if interval else ""
        kind = f"{contest.title.lower()}: " if found.request else ""
        label = f"{kind}{change.ours:.3f} against {change.theirs:.3f} of {contest.theirs}"
        yield Tile(signed(change.difference), label, note, change.verdict)
    if contests and contests[0].overall.interval:
        first = contests[0]
        won, lost = len(first.judged("better")), len(first.judged("worse"))
        kind = first.title.lower() if found.request else "tasks"
        note = f"{lost} worse, {len(first.tasks) - won - lost} undecided"
        yield Tile(f"{won} of {len(first.tasks)}", f"{kind} better than {first.theirs}", note)
    trained = cost(found, found.bags)
    if trained:
        note = f"{trained.steps:,} steps, {trained.passes:.1f} passes over the data"
        yield Tile(duration(trained.rank_seconds), f"of {trained.device} time for training", note)
    if timeline:
        yield Tile(duration(timeline.seconds), "from first to last", f"begun {moment(timeline.began)}")

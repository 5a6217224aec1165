"""Is one model better than another? Confidence intervals of differences, by a paired bootstrap over queries.

Both models answered the same queries, so each query has one difference. A resample draws as many queries as
there are, with replacement, within each task: the tasks are those that matter, their queries a sample.
"""

from statistics import fmean

import numpy as np
from rich.table import Table
from scipy.stats import bootstrap

from boom_ray.artifacts.contents import Comparison, Difference
from boom_ray.evaluation.measure import Measurement
from boom_ray.runs.scores import main_metric, main_score, task_groups

CONFIDENCE = 0.95
NUM_RESAMPLES = 9999
SEED = 0
MAX_DRAWN = 1 << 22  # queries drawn at once: 32 MiB
Pair = tuple[Measurement, Measurement]


def compare(results: dict[str, dict[str, Measurement]]) -> Comparison:
    """Compare two models that were measured on the same tasks.

    Args:
        results: Label -> task -> measurement, of our model and of the other.
    """
    ours, theirs = results
    metric = main_metric({task: found.scores for task, found in results[ours].items()})
    pairs = {task: (results[ours][task], results[theirs][task]) for task in results[ours]}
    groups = task_groups(list(pairs)).items()
    return Comparison(
        ours=ours,
        theirs=theirs,
        metric=metric,
        tasks={task: _difference([pair]) for task, pair in pairs.items()},
        means={name: _difference([pairs[task] for task in tasks]) for name, tasks in groups},
    )


def table(comparison: Comparison) -> Table:
    """A line for each task and mean, with the interval of the difference."""
    title = f"{comparison.ours} against {comparison.theirs}"
    lines = Table(comparison.metric, title=title, show_edge=False)
    for name in (comparison.ours, comparison.theirs, "difference", f"{CONFIDENCE:.0%}", "", "queries"):
        lines.add_column(name, justify="right", no_wrap=True)
    named = comparison.tasks | {f"mean {group}": found for group, found in comparison.means.items()}
    for name, found in named.items():
        cells = [f"{found.ours:.3f}", f"{found.theirs:.3f}", f"{found.ours - found.theirs:+.3f}"]
        cells += [_spoken(found.low, found.high), found.verdict, f"{found.queries:,}"]
        lines.add_row(name, *cells, style="bold" if name.startswith("mean ") else None)
    return lines


def _spoken(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:+.3f} … {high:+.3f}"


def _difference(tasks: list[Pair]) -> Difference:
    """In the mean over tasks, each of which both models were measured on."""
    ours, theirs = (fmean(main_score(pair[side].scores) for pair in tasks) for side in (0, 1))
    queries = sum(len(mine.queries) for mine, _ in tasks)
    if not all(mine.queries for mine, _ in tasks):
        low, high, verdict = None, None, "unknown"
    else:
        low, high = _interval([_of_queries(*pair) for pair in tasks])
        verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
    return Difference(ours=ours, theirs=theirs, low=low, high=high, verdict=verdict, queries=queries)


def _of_queries(ours: Measurement, theirs: Measurement) -> np.ndarray:
    """[n] differences on each query."""
    return np.array([score - theirs.queries[query] for query, score in sorted(ours.queries.items())])


def _interval(tasks: list[np.ndarray]) -> tuple[float, float]:
    """Of the mean over tasks of the mean over queries; a task with one query leaves everything open."""
    if min(map(len, tasks)) < 2:
        return -1.0, 1.0
    low, high = bootstrap(
        tasks,
        lambda *samples, axis: np.mean([sample.mean(axis) for sample in samples], axis=0),
        n_resamples=NUM_RESAMPLES,
        batch=max(1, MAX_DRAWN // max(map(len, tasks))),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(low), float(high)

"""The difference between two models with confidence intervals, by a paired bootstrap over queries.

Both models answer the same queries, so each query has one difference of scores. A resample draws, within each
task, as many queries as the task has, with replacement: tasks are fixed, their queries are a sample.
"""

from statistics import fmean

import numpy as np
from rich.table import Table
from scipy.stats import bootstrap

from boom_ray.artifacts.contents import Comparison, Difference
from boom_ray.evaluation.protocol import Measurement
from boom_ray.runs.scores import main_metric, main_score, task_groups

CONFIDENCE = 0.95
NUM_RESAMPLES = 9999
SEED = 0
MAX_DRAWN = 1 << 22  # queries drawn in one batch of resamples: 32 MiB of float64
MeasuredPair = tuple[Measurement, Measurement]


def compare(results: dict[str, dict[str, Measurement]]) -> Comparison:
    """Compare two models that were measured on the same tasks.

    Args:
        results: label -> task -> measurement, first of our model, then of the other.
    """
    ours, theirs = results
    metric = main_metric({task: measurement.scores for task, measurement in results[ours].items()})
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
    """A row per task and per mean, with the interval of the difference."""
    title = f"{comparison.ours} compared with {comparison.theirs}"
    rows = Table(comparison.metric, title=title, show_edge=False)
    for name in (comparison.ours, comparison.theirs, "difference", f"{CONFIDENCE:.0%}", "", "queries"):
        rows.add_column(name, justify="right", no_wrap=True)
    means = {f"mean {group}": difference for group, difference in comparison.means.items()}
    for name, difference in (comparison.tasks | means).items():
        cells = [f"{difference.ours:.3f}", f"{difference.theirs:.3f}"]
        cells += [f"{difference.ours - difference.theirs:+.3f}", _interval_text(difference)]
        cells += [difference.verdict, f"{difference.queries:,}"]
        rows.add_row(name, *cells, style="bold" if name in means else None)
    return rows


def _interval_text(difference: Difference) -> str:
    if difference.low is None or difference.high is None:
        return "-"
    return f"{difference.low:+.3f} … {difference.high:+.3f}"


def _difference(tasks: list[MeasuredPair]) -> Difference:
    """The difference in the mean over tasks."""
    ours, theirs = (fmean(main_score(pair[side].scores) for pair in tasks) for side in (0, 1))
    queries = sum(len(our.queries) for our, _ in tasks)
    if not all(our.queries for our, _ in tasks):
        low, high, verdict = None, None, "unknown"
    else:
        low, high = _interval([_query_differences(*pair) for pair in tasks])
        verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
    return Difference(ours=ours, theirs=theirs, low=low, high=high, verdict=verdict, queries=queries)


def _query_differences(ours: Measurement, theirs: Measurement) -> np.ndarray:
    """[n] float64 differences, one per query; sorted by query so that the bootstrap is deterministic."""
    return np.array([score - theirs.queries[query] for query, score in sorted(ours.queries.items())])


def _interval(tasks: list[np.ndarray]) -> tuple[float, float]:
    """The interval of the mean over tasks of the mean over queries.

    One query has no variance to resample: a task with fewer than two makes the interval [-1, 1].
    """
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

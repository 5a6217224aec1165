"""The planner: a figure of its simulation, and its predictions compared with a completed run.

    python tests/benchmarks/plan.py scale [--out cluster/plan.svg]
    python tests/benchmarks/plan.py reality RECIPE [--storage URI]

`scale` plans 100 bags of 5 % each of 10^9 rows with Qwen3-0.6B on 8 to 4,096 H100 in spot nodes of 8, with
the assumptions that `boom-ray plan` prints. `reality` compares what `boom-ray plan RECIPE --calibrate`
predicts with the times in the records of `boom-ray run RECIPE`. Each prints one JSON line.
"""

import datetime
import json
import os
import sys
import time
from dataclasses import replace
from typing import Any

import click
import matplotlib
import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)
matplotlib.use("agg")

from matplotlib import pyplot  # noqa: E402

from boom_ray import artifacts, storage  # noqa: E402
from boom_ray.data import bags  # noqa: E402
from boom_ray.planner import calibration, hardware, simulate  # noqa: E402
from boom_ray.planner.assumptions import Assumptions  # noqa: E402
from boom_ray.planner.estimate import Estimate  # noqa: E402
from boom_ray.planner.forecast import Forecast, bottleneck, conditions_of, forecast, works_of  # noqa: E402
from boom_ray.planner.plan import SIZES, gather, on_cluster  # noqa: E402
from boom_ray.planner.workload import Workload  # noqa: E402
from boom_ray.recipe import Recipe  # noqa: E402

NUM_BAGS, NUM_ROWS = 100, 10**9
LOSSES = [0.005, 0.02, 0.1]  # of a node, an hour
NUM_WORKERS = [8, 64]  # of the merge


@click.group()
def main() -> None:
    """See above."""


def hypothetical(num_workers: int) -> Recipe:
    """A recipe of 10^9 rows without files."""
    return Recipe.model_validate(
        {
            "name": "scale",
            "base_model": {"path": "hf://Qwen/Qwen3-0.6B", "pooling": "lasttoken"},
            "data": {"tasks": [{"name": "web", "path": "hf://datasets/x/y/z-*", "expected_rows": NUM_ROWS}]},
            "bags": {"ratios": [5] * NUM_BAGS},
            "merge": {"execution": {"num_workers": num_workers}},
            "train": {
                "batch_size": 1024,
                "execution": {
                    "num_workers": "auto",
                    "use_gpu": True,
                    "gradient_checkpointing": True,
                    "chunk_tokens": 32768,
                },
            },
        }
    )


def planned(
    workload: Workload, num_gpus: int, overrides: dict[str, float]
) -> tuple[Estimate, Forecast, Assumptions]:
    """Estimate and forecast on one cluster."""
    assume = Assumptions(overrides)
    cluster = hardware.cluster("H100", num_gpus, workload.recipe.train.execution, assume)
    made = on_cluster(workload, cluster, assume)
    return made, forecast(made, assume), assume


@main.command()
@click.option("--out", default=os.path.join(ROOT, "cluster", "plan.svg"), metavar="FILE.svg")
def scale(out: str) -> None:
    """Plan and simulate clusters of growing size, and draw the figure."""
    since = time.time()
    workload = gather(hypothetical(NUM_WORKERS[0]), None, Assumptions())
    rows = {
        losses: [planned(workload, size, {"spot.losses_per_node_hour": losses}) for size in SIZES]
        for losses in LOSSES
    }
    few = rows[LOSSES[1]]
    more = replace(workload, recipe=hypothetical(NUM_WORKERS[1]))
    merges = {
        NUM_WORKERS[0]: [made.merge for made, _, _ in few],
        NUM_WORKERS[1]: [planned(more, size, {})[0].merge for size in SIZES],
    }
    best, tried, formula = intervals(few[-1][0], few[-1][2])
    draw(out, rows, merges, tried, formula)
    most, seen, _ = few[-1]
    print(json.dumps({
        "benchmark": "plan scale", "gpus": SIZES[-1], "bags": NUM_BAGS, "rows": NUM_ROWS,
        "days without losses": round(most.train / 86400, 2), "days": round(seen.makespan / 86400, 2),
        "failures": round(seen.failures), "work done again": round(seen.lost, 5),
        "saving": round(seen.saving, 5), "best interval s": round(best), **formula,
        "merge s": {str(workers): round(values[-1]) for workers, values in merges.items()},
        "head": round(seen.head_load, 4),
        "bottleneck": {size: bottleneck(made, at) for size, (made, at, _) in zip(SIZES, few, strict=True)},
        "merge outlasts the steps below rows": round(
            NUM_ROWS * most.merge / (most.train - most.start - most.finish)
        ),
        "head is full at ranks": round(SIZES[-1] / seen.head_load),
        "seconds": round(time.time() - since, 1),
    }))  # fmt: skip


def intervals(made: Estimate, assume: Assumptions) -> tuple[float, dict[float, float], dict[str, float]]:
    """The best interval, the makespan of each simulated interval, and the intervals of the formulas."""
    works, conditions = works_of(made), conditions_of(made, assume)
    mtbf = 1 / (conditions.failure_rate * works[0].nodes)
    young, daly = simulate.young(conditions.save, mtbf), simulate.daly(conditions.save, mtbf)
    best, tried = simulate.best_interval(works, conditions, young, range(24))
    return best, tried, {"Young s": round(young), "Daly s": round(daly)}


def draw(
    out: str,
    rows: dict[float, list[Any]],
    merges: dict[int, list[float]],
    tried: dict[float, float],
    formula: dict[str, float],
) -> None:
    """Four panels: training time, cost of node failures, checkpoint intervals, and the other stages."""
    matplotlib.rcParams["svg.hashsalt"] = "plan"
    figure, ((time_axis, cost_axis), (interval_axis, other_axis)) = pyplot.subplots(
        2, 2, figsize=(10, 7), layout="constrained"
    )
    few = rows[LOSSES[1]]
    time_axis.loglog(SIZES, [made.train / 86400 for made, _, _ in few], "k:", label="no losses")
    for losses, results in rows.items():
        label = f"{losses:g} losses per node-hour"
        time_axis.loglog(SIZES, [seen.makespan / 86400 for _, seen, _ in results], ".-", label=label)
        extra = [100 * (seen.best_makespan / made.train - 1) for made, seen, _ in results]
        cost_axis.semilogx(SIZES, extra, ".-", label=label)
    time_axis.set(xlabel="GPUs", ylabel="days of training", title="100 bags, 10⁹ rows, Qwen3-0.6B on H100")
    cost_axis.set(xlabel="GPUs", ylabel="% longer than without losses", title="with the best interval")
    interval_axis.semilogx(
        list(tried), [seconds / 86400 for seconds in tried.values()], ".-", label="simulated"
    )
    for name, style in (("Young s", "--"), ("Daly s", ":")):
        interval_axis.axvline(formula[name], color="k", linestyle=style, label=f"{name[:-2]}'s formula")
    interval_axis.set(
        xlabel="seconds of work between checkpoints", ylabel="days of training", title=f"{SIZES[-1]:,} GPUs"
    )
    for workers, values in merges.items():
        share = [100 * merge / seen.makespan for merge, (_, seen, _) in zip(values, few, strict=True)]
        other_axis.loglog(SIZES, share, ".-", label=f"merge by {workers} workers / training")
    other_axis.loglog(SIZES, [100 * seen.head_load for _, seen, _ in few], ".-", label="head node, busy")
    other_axis.axhline(100, color="k", linestyle=":", label="all of it")
    other_axis.set(xlabel="GPUs", ylabel="% of the time", title="other possible bottlenecks")
    for axis in figure.axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small", loc="lower right" if axis is other_axis else "best")
    figure.savefig(out, metadata={"Date": None})


@main.command()
@click.argument("recipe")
@click.option("--storage", "storage_uri", metavar="URI")
def reality(recipe: str, storage_uri: str | None) -> None:
    """Predicted and measured time of each stage."""
    loaded = Recipe.load(recipe, storage_uri)
    found = calibration.stored(loaded)
    assert found is not None, "run boom-ray plan --calibrate first"
    assume = Assumptions({}, found.values)
    workload = gather(loaded, None, assume)
    execution = loaded.train.execution
    cluster = hardware.cluster(found.gpu_type, found.num_gpus, execution, assume)
    made = on_cluster(workload, cluster, assume)
    measured = times_of(loaded)
    predicted = {bag.name: bag.seconds - made.start for bag in made.bags}
    predicted |= {"train": made.train, "merge": made.merge, "evaluate": made.evaluate}
    ratios = {stage: predicted[stage] / seconds for stage, seconds in measured.items()}
    for stage, seconds in measured.items():
        print(f"| {stage} | {predicted[stage]:.1f} | {seconds:.1f} | {ratios[stage]:.2f} |", file=sys.stderr)
    print(json.dumps({
        "benchmark": "plan reality", "recipe": loaded.name,
        "predicted": {stage: round(predicted[stage], 1) for stage in measured},
        "measured": {stage: round(seconds, 1) for stage, seconds in measured.items()},
        "ratio": {stage: round(ratio, 2) for stage, ratio in ratios.items()},
        "farthest": round(float(max(np.abs(np.array(list(ratios.values())) - 1))), 2),
    }))  # fmt: skip


def times_of(loaded: Recipe) -> dict[str, float]:
    """Seconds of each bag since its first step, of all training, of the merge and of the evaluation."""
    models = storage.join(loaded.root, "models")
    names = [bags.name_of(index) for index in range(len(loaded.bags.ratios))]
    records = {name: artifacts.read_record(storage.join(models, name)) for name in [*names, "v0001"]}
    times = {name: record.times for name, record in records.items() if record}
    drawn = artifacts.read_record(storage.join(loaded.root, "bags"))
    assert drawn is not None
    begun = datetime.datetime.fromisoformat(drawn.created).timestamp()
    measured = {name: times[name]["train"][1] - times[name]["train"][0] for name in names}
    measured["train"] = max(times[name]["train"][1] for name in names) - begun
    for stage in ("merge", "evaluate"):
        start, end = times["v0001"][stage]
        measured[stage] = end - start
    return measured


if __name__ == "__main__":
    main()

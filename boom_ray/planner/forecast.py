"""The forecast of a run with node failures, and its bottleneck as the cluster grows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boom_ray.planner import simulate
from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.estimate import Estimate
from boom_ray.planner.simulate import BagWork, Conditions, SimulatedRun

HEAD_IS_BUSY = 0.5
MIN_RUNS, MIN_BAGS = 6, 600  # simulated for each mean
RESTORE_READS = 2  # of a rank's part of a checkpoint: its hash is checked before it is used


@dataclass(frozen=True)
class Forecast:
    """Training with node failures, means over seeds; times in seconds.

    Attributes:
        makespan: Duration of training.
        failures: Number of failures.
        lost: Fraction of the work that is repeated.
        saving: Time of checkpoints as a fraction of the work.
        interval: Work between two checkpoints with the recipe's settings.
        best_interval: The interval with the shortest makespan of those simulated.
        best_makespan: Duration of training with that interval.
        young, daly: The optimal interval by formula, for the bag with the most nodes.
        head_load: Load of the head node, 1 being its capacity.
        head_memory: Bytes on the head node of Ray and the driver.
    """

    makespan: float
    failures: float
    lost: float
    saving: float
    interval: float
    best_interval: float
    best_makespan: float
    young: float
    daly: float
    head_load: float
    head_memory: float


def conditions_of(estimate: Estimate, assume: Assumptions) -> Conditions:
    """The conditions to simulate an estimated run under."""
    save_every = estimate.workload.recipe.train.execution.save_every_steps
    hourly = assume.take("spot.losses_per_node_hour", 0.02, "1/h", "of a spot node, a guess")
    return Conditions(
        capacity=estimate.cluster.num_ranks,
        start=estimate.start,
        finish=estimate.finish,
        interval=save_every * estimate.longest.step.seconds,
        save=estimate.save,
        upload=estimate.upload,
        restore=RESTORE_READS * estimate.upload,
        failure_rate=hourly / 3600,
        replacement=assume.take("spot.replacement_seconds", 300, "s", "to replace a lost node, a guess"),
        rank_start=assume.take(
            "head.rank_start_seconds", 1 / 389, "s", "389 actors/s: many_actors.json of Ray's release logs"
        ),
    )


def works_of(estimate: Estimate) -> list[BagWork]:
    """The bags of an estimated run as the simulation takes them."""
    return [BagWork(bag.work, bag.ranks, estimate.cluster.nodes_of(bag.ranks)) for bag in estimate.bags]


def forecast(estimate: Estimate, assume: Assumptions, seeds: Sequence[int] | None = None) -> Forecast:
    """Simulate a run's training with the recipe's checkpoint interval and with others."""
    works, conditions = works_of(estimate), conditions_of(estimate, assume)
    seeds = seeds or range(max(MIN_RUNS, MIN_BAGS // len(works)))
    runs = [simulate.simulate(works, conditions, seed) for seed in seeds]
    makespan = float(np.mean([run.makespan for run in runs]))
    young = daly = best = conditions.interval
    best_makespan = makespan
    if conditions.failure_rate:
        nodes, save = max(work.nodes for work in works), max(conditions.save, 1e-3)
        mtbf = 1 / (conditions.failure_rate * nodes)
        young, daly = simulate.young(save, mtbf), simulate.daly(save, mtbf)
        best, simulated = simulate.best_interval(works, conditions, young, seeds)
        best_makespan = simulated[best]
    work = sum(work.seconds * work.ranks for work in works)
    return Forecast(
        makespan=makespan,
        failures=float(np.mean([run.failures for run in runs])),
        lost=float(np.mean([run.lost for run in runs])) / work,
        saving=float(np.mean([run.saving for run in runs])) / work,
        interval=conditions.interval,
        best_interval=best,
        best_makespan=best_makespan,
        young=young,
        daly=daly,
        head_load=head_load(estimate, runs, assume),
        head_memory=head_memory(estimate, assume),
    )


def head_load(estimate: Estimate, runs: list[SimulatedRun], assume: Assumptions) -> float:
    """Load of the head node: starting ranks, or answering calls if that takes longer.

    The first rank of each bag reports every step. The health of ranks is polled by Ray Train's controllers,
    which run on worker nodes.
    """
    call = assume.take("head.call_seconds", 0.001, "s", "of a call to an actor, a guess")
    cpus = assume.take("head.cpus", 16, "", "of the head node")
    calls = sum(bag.steps for bag in estimate.bags) / estimate.train
    starting = float(np.mean([run.head / run.makespan for run in runs]))
    return max(starting, calls * call / cpus)


def head_memory(estimate: Estimate, assume: Assumptions) -> float:
    """Bytes on the head node: Ray and the driver, and their growth with each bag."""
    source = "resident, tests/benchmarks/RESULTS.md"
    ray = assume.take("head.ray_memory", 2.1e9, "B", f"driver, GCS, dashboard and agents; {source}")
    bag = assume.take("head.bag_memory", 1.04e6, "B", f"of all of them, for each bag; {source}")
    return ray + len(estimate.bags) * bag


def bottleneck(estimate: Estimate, forecast: Forecast) -> str:
    """The largest part of the run's duration, within the longest bag or among the stages, or `head`."""
    if forecast.head_load > HEAD_IS_BUSY:
        return "head"
    bag = estimate.longest
    parts = {
        "compute": bag.steps * bag.step.compute,
        "launches": bag.steps * bag.step.launches,
        "feed": bag.steps * bag.step.feed,
        "network": bag.steps * bag.step.network,
        "start": estimate.start + estimate.finish,
        "node failures": forecast.makespan - estimate.train,
        "merge": estimate.merge,
        "evaluate": estimate.evaluate,
    }
    return max(parts, key=lambda part: parts[part])

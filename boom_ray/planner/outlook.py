"""A run among failures, and what becomes the bottleneck as the cluster grows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boom_ray.planner import simulate
from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.estimate import Estimate
from boom_ray.planner.simulate import Conditions, Outcome, Work

HEAD_IS_BUSY = 0.5
LEAST_RUNS, WANTED_BAGS = 6, 600  # simulated for each number
HEALTH_CHECK_SECONDS = 2.0  # of Ray Train, for each rank: RAY_TRAIN_HEALTH_CHECK_INTERVAL_S


@dataclass(frozen=True)
class Outlook:
    """Training with lost nodes, means over seeds; times are in seconds.

    Attributes:
        makespan: Until the last bag ends.
        failures: Nodes lost under a bag.
        lost: Share of the ranks' time that is work done again.
        saving: Share of it that checkpoints take.
        interval: Of work between two checkpoints, as the recipe has it.
        best: The interval with the shortest makespan of those tried.
        best_makespan: With it.
        young, daly: The best interval by formula, for the bag on the most nodes.
        head: Share of its time that the head node starts ranks, and answers.
        head_memory: Bytes that Ray and the controllers of all bags side by side hold on it.
    """

    makespan: float
    failures: float
    lost: float
    saving: float
    interval: float
    best: float
    best_makespan: float
    young: float
    daly: float
    head: float
    head_memory: float


def conditions_of(estimate: Estimate, assume: Assumptions) -> Conditions:
    """What the bags of a run meet."""
    every = estimate.known.recipe.train.execution.save_every_steps
    hourly = assume.take("spot.losses_per_node_hour", 0.02, "1/h", "of a spot node, a guess")
    return Conditions(
        capacity=estimate.cluster.num_ranks,
        start=estimate.start,
        finish=estimate.finish,
        interval=every * estimate.longest.step.seconds,
        save=estimate.save,
        upload=estimate.upload,
        failure_rate=hourly / 3600,
        replacement=assume.take("spot.replacement_seconds", 300, "s", "until there is another node, a guess"),
        rank_start=assume.take(
            "head.rank_start_seconds", 1 / 389, "s", "389 actors/s: many_actors.json of Ray's release logs"
        ),
    )


def works_of(estimate: Estimate) -> list[Work]:
    """The bags of a run as the simulation takes them."""
    return [
        Work(bag.steps * bag.step.seconds, bag.ranks, estimate.cluster.nodes_of(bag.ranks))
        for bag in estimate.bags
    ]


def outlook(estimate: Estimate, assume: Assumptions, seeds: Sequence[int] | None = None) -> Outlook:
    """Simulate a run's training some times, with its own interval between checkpoints and with others."""
    works, conditions = works_of(estimate), conditions_of(estimate, assume)
    seeds = seeds or range(max(LEAST_RUNS, WANTED_BAGS // len(works)))
    runs = [simulate.simulate(works, conditions, seed) for seed in seeds]
    makespan = float(np.mean([run.makespan for run in runs]))
    nodes, save = max(work.nodes for work in works), max(conditions.save, 1e-3)
    mtbf = 1 / (conditions.failure_rate * nodes) if conditions.failure_rate else float("inf")
    young = daly = best = conditions.interval
    best_makespan = makespan
    if conditions.failure_rate:
        young, daly = simulate.young(save, mtbf), simulate.daly(save, mtbf)
        best, tried = simulate.best_interval(works, conditions, young, seeds)
        best_makespan = tried[best]
    busy = sum(work.seconds * work.ranks for work in works)
    return Outlook(
        makespan=makespan,
        failures=float(np.mean([run.failures for run in runs])),
        lost=float(np.mean([run.lost for run in runs])) / busy,
        saving=float(np.mean([run.saving for run in runs])) / busy,
        interval=conditions.interval,
        best=best,
        best_makespan=best_makespan,
        young=young,
        daly=daly,
        head=head_load(estimate, runs, assume),
        head_memory=head_memory(estimate, assume),
    )


def head_load(estimate: Estimate, runs: list[Outcome], assume: Assumptions) -> float:
    """Share of the head node's capacity that a run takes: starting ranks, or answering calls if that is more.

    Ray Train asks each rank for its health every two seconds; each bag's first rank tells of every step.
    """
    call = assume.take("head.call_seconds", 0.001, "s", "of a call to an actor, a guess")
    cpus = assume.take("head.cpus", 16, "", "of the head node, where Ray Train's controllers run")
    running = min(estimate.cluster.num_ranks, sum(bag.ranks for bag in estimate.bags))
    calls = running / HEALTH_CHECK_SECONDS
    calls += sum(bag.steps for bag in estimate.bags) / estimate.train
    starting = float(np.mean([run.head / run.makespan for run in runs]))
    return max(starting, calls * call / cpus)


def head_memory(estimate: Estimate, assume: Assumptions) -> float:
    """Bytes on the head node: what serves all bags, and Ray Train's controller of each that is trained."""
    source = "resident, tests/benchmarks/RESULTS.md"
    ray = assume.take("head.ray_memory", 2.1e9, "B", f"driver, GCS, dashboard and agents; {source}")
    controller = assume.take("head.controller_memory", 405e6, "B", f"of the process of a bag; {source}")
    most = max(sum(one.start <= bag.start < one.end for one in estimate.bags) for bag in estimate.bags)
    return ray + most * controller


def bottleneck(estimate: Estimate, seen: Outlook) -> str:
    """What takes most of a run's time, of the longest bag or of the stages; or the head node, if busy."""
    if seen.head > HEAD_IS_BUSY:
        return "head"
    bag = estimate.longest
    parts = {
        "arithmetic": bag.steps * bag.step.compute,
        "network": bag.steps * bag.step.network,
        "start": estimate.start + estimate.finish,
        "lost nodes": seen.makespan - estimate.train,
        "merge": estimate.merge,
        "evaluate": estimate.evaluate,
    }
    return max(parts, key=lambda part: parts[part])

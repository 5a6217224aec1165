"""What a cluster really does: the recipe in miniature, measured and stored for its plans.

As many bags as would run side by side take a few real steps with the ranks, resources and lengths of the
recipe, are published and merged, and measured on one task. Rates are work, as the planner counts it, over
time.
"""

import datetime
import itertools
import json
import os
import tempfile
import time
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np
import ray

from boom_ray import artifacts, storage
from boom_ray.artifacts import staging
from boom_ray.data import bags, corpus
from boom_ray.data.batches import num_batches, num_steps
from boom_ray.evaluation.measure import find_tasks
from boom_ray.merge.driver import merge_into
from boom_ray.model import directory
from boom_ray.planner import cost, stages
from boom_ray.planner.calibration import Calibration, store
from boom_ray.planner.estimate import Known, schedule_of
from boom_ray.planner.hardware import DATA_SHEETS, Cluster, Rank
from boom_ray.planner.shape import Shape
from boom_ray.planner.texts import Load
from boom_ray.recipe import Bags, Evaluate, Recipe, Train
from boom_ray.runs.heartbeat import driving
from boom_ray.runtime.cluster import result_of
from boom_ray.runtime.console import console
from boom_ray.train import journal
from boom_ray.train.bagging import train_bags
from boom_ray.train.board import ProgressBoard
from boom_ray.train.cluster import await_room

SCRATCH = "calibration-scratch"
MOST_BAGS = 8
PROBE_BYTES, NUM_CALLS = 64 << 20, 200
NUM_TEXTS, LENGTH, FIRST_WORD = 128, 64, 5  # texts of one token, where there is nothing to measure on
RAY_NAMES = {"A100": "A100-80", "A100-40G": "A100-40", "A100-80G": "A100-80"}


def hardware_of(recipe: Recipe) -> tuple[str, int]:
    """Kind and number of the processors of the cluster that this process is connected to."""
    total = ray.cluster_resources()
    if not recipe.train.execution.use_gpu:
        return "cpu", int(total.get("CPU", 1))
    found = [name.partition(":")[2] for name in total if name.startswith("accelerator_type:")]
    kinds = [kind for name in found if (kind := RAY_NAMES.get(name, name)) in DATA_SHEETS]
    return (kinds or ["H100"])[0], int(total.get("GPU", 1))


def calibrate(known: Known, cluster: Cluster, rank: Rank, num_steps: int) -> None:
    """Measure the cluster that this process is connected to, and store the result.

    Args:
        rank: As a plan would take it without a calibration.
        num_steps: Optimizer steps of each bag, the first of which does not count.

    Raises:
        BoomError: as training and merging do. Nothing of the miniature is left, however it ends.
    """
    small = miniature(known.recipe, known.sizes, num_steps)
    storage.delete_tree(small.root)
    try:
        console.print(f"calibrate: {len(small.bags.ratios)} bags of {num_steps} steps, merged and measured")
        models, values = _training(small, known, cluster, rank)
        values |= _merging(small, known.shape, models)
        values |= _encoding(known, cluster, models[0])
        values |= _storing(small.root)
    finally:
        storage.delete_tree(small.root)
    if cluster.on_cpus:
        values["gpu.memory"] = ray.cluster_resources()["memory"] / cluster.num_gpus
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    measured = Calibration(cluster.gpu_type, cluster.num_gpus, values, created)
    console.print(f"calibration: {store(known.recipe, measured)}")


def miniature(recipe: Recipe, sizes: Mapping[str, int], steps: int) -> Recipe:
    """A recipe of a few steps, with as many bags as run side by side, each on half of the first rows."""
    train, room = recipe.train, await_room(recipe.train.execution)
    counts = bags.counts(dict(sizes), recipe.bags)
    whole = schedule_of(recipe, [num_steps(tasks.values(), train) for tasks in counts], room)
    at_once = sum(start == 0 for start, _ in whole.spans)
    batches = {task: num_batches([rows], train.batch_size) for task, rows in sizes.items()}
    share = steps / sum(batches.values())
    tasks = [
        task.model_copy(update={"limit": 2 * train.batch_size * max(1, round(share * batches[task.name]))})
        for task in recipe.data.tasks
    ]
    execution = train.execution.model_copy(update={"num_workers": min(whole.ranks), "max_failures": 0})
    return recipe.model_copy(
        update={
            "name": SCRATCH,
            "storage": recipe.root,
            "data": recipe.data.model_copy(update={"tasks": tasks, "max_bad_fraction": 1.0}),
            "bags": Bags(ratios=[50] * min(MOST_BAGS, max(2, at_once)), seed=recipe.bags.seed),
            "train": train.model_copy(update={"max_steps": steps, "epochs": 1, "execution": execution}),
            "evaluate": Evaluate(),
        }
    )


def _training(
    small: Recipe, known: Known, cluster: Cluster, rank: Rank
) -> tuple[list[str], dict[str, float]]:
    """Train the miniature's bags; their models, and what training took."""
    prepared = corpus.prepare(small.data, storage.join(small.root, "corpus"), small.name)
    drawn = bags.publish(prepared, small.bags, storage.join(small.root, "bags"))
    base, since = directory.identify(small.base_model.path), time.time()
    with driving(small.root, "plan", small.name) as driver:
        models = train_bags(small, prepared, drawn, base, driver)
    starts, work, finishes = [], [], []
    for uri in models:
        record = artifacts.read_record(uri)
        assert record is not None
        began, ended = record.times["train"]
        lines = storage.read_bytes(storage.join(uri, journal.FILE)).splitlines()
        steps = [json.loads(line) for line in lines]
        starts.append(began - since)
        finishes.append(ended - steps[-1]["time"])
        work += [
            _arithmetic(known, small.train, step["task"], step["time"] - before["time"], cluster, rank)
            for before, step in itertools.pairwise(steps)
        ]
    flops, seconds = (sum(column) for column in zip(*work, strict=True))
    return models, {
        "rank.flops": flops / seconds,
        "train.start_seconds": fmean(starts),
        "train.finish_seconds": fmean(finishes),
    }


def _arithmetic(
    known: Known, train: Train, task: str, spent: float, cluster: Cluster, rank: Rank
) -> tuple[float, float]:
    """Operations of one rank in a step that took so long, and the seconds that were left for them."""
    num_ranks = train.execution.num_workers
    assert num_ranks != "auto"
    step = cost.step(known.shape, train, known.loads[task], num_ranks, cluster, rank)
    return step.flops / num_ranks, max(spent - step.network - step.optimizer, spent / 10)


def _merging(small: Recipe, shape: Shape, models: list[str]) -> dict[str, float]:
    """A merge that is thrown away: the start of its processes, and what one worker streams a second."""
    settings = small.merge.model_copy(update={"weights": "equal", "density": 0.5})
    with staging.staged(storage.join(small.root, "merged")) as stage:
        since = time.time()
        _, merged = merge_into(stage, models, small.base_model.path, settings)
        whole = time.time() - since
    rate = stages.merge_bytes(small, shape, len(models)) / merged.seconds / settings.execution.num_workers
    return {"merge.start_seconds": whole - merged.seconds, "merge.bytes_per_second": rate}


@ray.remote(num_cpus=1)
def _measure(model: str, task: str | None, max_length: int | None) -> tuple[float, float, float]:
    """When this process was ready, the seconds to load a model, and those to measure it, or to embed."""
    from boom_ray.evaluation.retrieval import RetrievalEvaluator

    ready = time.time()
    encoder: Any = directory.load_encoder(storage.local_directory(model)).for_inference()
    loaded = time.time()
    if task:
        evaluator = RetrievalEvaluator(task, max_length, 4096)
        evaluator.compute_all_metrics(encoder)
    else:
        encoder.encode_tokens([[FIRST_WORD] * LENGTH] * NUM_TEXTS)
    return ready, loaded - ready, time.time() - loaded


def _encoding(known: Known, cluster: Cluster, model: str) -> dict[str, float]:
    """What every CPU does at once when models are measured, and what that says of embedding on CPUs."""
    evaluate, shape, slots = known.recipe.evaluate, known.shape, max(1, min(64, int(cluster.num_cpus)))
    tasks = known.evaluation if evaluate.data else []
    found = find_tasks(evaluate.data).values() if evaluate.data and tasks else []
    task = next((one.uri for one in found if one.type == "Retrieval"), None)
    load = tasks[0] if task else Load(NUM_TEXTS, NUM_TEXTS * LENGTH, NUM_TEXTS * LENGTH, LENGTH, 0, True)
    since = time.time()
    found = result_of([_measure.remote(model, task, evaluate.max_length) for _ in range(slots)])
    ready, loads, seconds = zip(*found, strict=True)
    rate = slots * shape.forward_flops(load.computed, load.length) / sum(seconds)
    values = {
        "evaluate.start_seconds": max(ready) - since,
        "evaluate.load_seconds": fmean(loads),
        "evaluate.score_seconds": 0.0,
        "evaluate.flops": rate,
    }
    on_cpus = rate * slots / cluster.num_ranks
    values["rank.encode_flops"] = on_cpus if cluster.on_cpus else _embedding_flops(shape, model)
    return values


def _embedding_flops(shape: Shape, model: str) -> float:
    """Operations a second of a GPU that embeds."""
    task: Any = _embed
    seconds = result_of(task.options(num_gpus=1).remote(model))
    return shape.forward_flops(NUM_TEXTS * LENGTH, LENGTH) / seconds


@ray.remote
def _embed(model: str) -> float:
    """Seconds to embed texts on a GPU as `boom-ray embed` does, after a first time that does not count."""
    import torch

    encoder = directory.load_encoder(storage.local_directory(model), device="cuda", dtype=torch.bfloat16)
    texts = [[FIRST_WORD] * LENGTH] * NUM_TEXTS
    encoder.encode_tokens(texts)
    since = time.perf_counter()
    encoder.encode_tokens(texts)
    return time.perf_counter() - since


@ray.remote(num_cpus=1)
def _write(uri: str) -> float:
    """Seconds to store a file of noise."""
    noise, since = np.random.default_rng(0).bytes(PROBE_BYTES), time.perf_counter()
    storage.write_bytes(uri, noise)
    seconds = time.perf_counter() - since
    storage.delete_file(uri)
    return seconds


def _storing(root: str) -> dict[str, float]:
    """Rates of the storage and of a worker's disk, and the seconds of a call to an actor."""
    far = result_of(_write.remote(storage.join(root, "probe")))
    here = os.path.join(tempfile.gettempdir(), f"boom-ray-probe-{os.getpid()}")
    near = result_of(_write.remote(here))
    board: Any = ProgressBoard.remote()  # type: ignore[attr-defined]
    ray.get(board.read.remote())
    since = time.perf_counter()
    for _ in range(NUM_CALLS):
        ray.get(board.read.remote())
    return {
        "storage.bytes_per_second": PROBE_BYTES / far,
        "disk.bytes_per_second": PROBE_BYTES / near,
        "head.call_seconds": (time.perf_counter() - since) / NUM_CALLS,
    }

"""Calibration: measures a cluster with the recipe in miniature, and stores the rates for later plans.

As many bags as would train concurrently take a few real steps with the ranks, resources and text lengths of
the recipe; they are published and merged, and one task is evaluated. A rate is the work that the planner
counts, over the time that the cluster took.
"""

import datetime
import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import numpy as np
import ray

from boom_ray import artifacts, storage
from boom_ray.artifacts import staging
from boom_ray.artifacts.record import METRICS_LOG
from boom_ray.data import bags, corpus
from boom_ray.data.batches import num_batches, num_steps
from boom_ray.evaluation import local_tasks
from boom_ray.merge.driver import merge_into
from boom_ray.model import directory
from boom_ray.model.tokens import Tokens
from boom_ray.planner import cost, hardware, memory, stages
from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.calibration import Calibration, store
from boom_ray.planner.estimate import schedule_of
from boom_ray.planner.hardware import DATA_SHEETS, ClusterSpec, RankSpec
from boom_ray.planner.plan import PlanOptions, gather
from boom_ray.planner.shape import ModelShape
from boom_ray.planner.texts import BatchMix, EncodedTexts
from boom_ray.planner.workload import Workload, planned_bags
from boom_ray.recipe import Bag, Bags, Evaluate, Recipe, Train
from boom_ray.runs.driver import driving
from boom_ray.runs.layout import Layout
from boom_ray.runtime import capacity, node_types
from boom_ray.runtime.cluster import connect, result_of
from boom_ray.train.bag_job import BagJob
from boom_ray.train.bagging import make_job, train_bags
from boom_ray.train.capacity import await_capacity, task_options
from boom_ray.train.progress_actor import ProgressActor

SCRATCH = "calibration-scratch"
MAX_BAGS = 8
PROBE_BYTES, NUM_CALLS = 64 << 20, 200
NUM_BATCHES, NUM_PASSES = 3, 20  # of which the host's part is measured
NUM_TEXTS, LENGTH, FIRST_WORD = 128, 64, 5  # texts of one repeated token, if there is no task to evaluate
RAY_NAMES = {"A100": "A100-80", "A100-40G": "A100-40", "A100-80G": "A100-80"}

logger = logging.getLogger(__name__)


def calibrate(recipe: Recipe, options: PlanOptions | None = None, num_steps: int = 8) -> Calibration:
    """Measure the cluster that Ray is reached at, and store the result in the run's storage.

    Args:
        options: `config_file` and `overrides` are used; the processors are those of the cluster.
        num_steps: Optimizer steps of each bag; the first is not measured.

    Raises:
        BoomError: as training and merging raise it. The miniature's files are deleted in any case.
    """
    options = options or PlanOptions()
    assume = Assumptions(options.overrides)
    workload = gather(recipe, options.config_file, assume)
    connect()
    cluster = hardware.cluster(*processors_of(recipe), recipe.train.execution, assume)
    rank = hardware.rank(cluster, recipe.train.precision, assume)
    small = miniature(recipe, workload.num_rows, num_steps)
    storage.delete_tree(small.root)
    try:
        logger.info("calibrate: %d bags of %d steps, merge and evaluation", len(small.bags.ratios), num_steps)
        values = _measured(small, workload, cluster, rank, assume)
    finally:
        storage.delete_tree(small.root)
    if cluster.on_cpus:
        total = ray.cluster_resources()
        values["gpu.memory"] = total["memory"] / max(1, total.get("CPU", 1))
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    calibration = Calibration(cluster.gpu_type, cluster.num_gpus, values, created)
    logger.info("calibration: %s", store(recipe, calibration))
    return calibration


def processors_of(recipe: Recipe) -> tuple[str, int]:
    """Kind and number of the processors of the recipe's ranks, on the connected cluster at its largest."""
    if not recipe.train.execution.use_gpu:
        return "cpu", max(1, capacity.potential({"CPU": 1}))
    names = {
        *ray.cluster_resources(),
        *(name for one in node_types.declared().types for name in one.resources),
    }
    found = [name.partition(":")[2] for name in sorted(names) if name.startswith("accelerator_type:")]
    kinds = [kind for name in found if (kind := RAY_NAMES.get(name, name)) in DATA_SHEETS]
    return (kinds or ["H100"])[0], max(1, capacity.potential({"GPU": 1}))


def miniature(recipe: Recipe, num_rows: Mapping[str, int], steps: int) -> Recipe:
    """A recipe of a few steps with as many bags as would train concurrently, each on half of the rows.

    Args:
        num_rows: Rows of each task of the recipe.
        steps: Optimizer steps of each bag.
    """
    train, ranks = recipe.train, await_capacity(recipe.train.execution)
    counts = enumerate(bags.counts(dict(num_rows), recipe.bags))
    bag_steps = [num_steps(tasks.values(), recipe.train_of(index)) for index, tasks in counts]
    schedule = schedule_of(recipe, bag_steps, ranks)
    num_bags = min(MAX_BAGS, max(2, sum(start == 0 for start, _ in schedule.spans)))
    batches = {task: num_batches([rows], train.batch_size) for task, rows in num_rows.items()}
    fraction = steps / sum(batches.values())
    tasks = [
        task.model_copy(update={"limit": 2 * train.batch_size * max(1, round(fraction * batches[task.name]))})
        for task in recipe.data.tasks
    ]
    execution = train.execution.model_copy(update={"num_workers": min(schedule.ranks), "max_failures": 0})
    return recipe.model_copy(
        update={
            "name": SCRATCH,
            "storage": recipe.root,
            "data": recipe.data.model_copy(update={"tasks": tasks, "max_bad_fraction": 1.0}),
            "bags": Bags(ratios=[Bag(ratio=50)] * num_bags, seed=recipe.bags.seed),
            "train": train.model_copy(update={"max_steps": steps, "epochs": 1, "execution": execution}),
            "evaluate": Evaluate(),
        }
    )


def _measured(
    small: Recipe, workload: Workload, cluster: ClusterSpec, rank: RankSpec, assume: Assumptions
) -> dict[str, float]:
    """Values of assumptions, measured with the miniature."""
    num_ranks = small.train.execution.fewest_workers
    train = memory.with_chunk_tokens(small.train, workload.shape, num_ranks, rank.memory, assume)
    models, values = _training(small, train, workload, cluster, rank)
    values |= _merging(small, workload, models)
    values |= _encoding(workload, cluster, models[0])
    return values | _storing(small.root, cluster)


def _training(
    small: Recipe, train: Train, workload: Workload, cluster: ClusterSpec, rank: RankSpec
) -> tuple[list[str], dict[str, float]]:
    """Train the miniature's bags; returns their models and the rates of training.

    Args:
        train: Its settings with a number for `chunk_tokens`.
    """
    layout = Layout(small.root)
    prepared = corpus.prepare(small.data, layout.corpus, small.name)
    drawn = bags.publish(prepared, small.bags, layout.bags)
    base = directory.identify(small.base_model.path)
    values = _hosting(make_job(small, 0, prepared, drawn, base, None), workload.shape)
    since = time.time()
    with driving(small.root, "plan", small.name) as driver:
        models = train_bags(small, prepared, drawn, base, driver)
    starts, work, finishes = [], [], []
    for uri in models:
        record = artifacts.read_record(uri)
        assert record is not None
        began, ended = record.times["train"]
        lines = storage.read_bytes(storage.join(uri, METRICS_LOG)).splitlines()
        steps = [json.loads(line) for line in lines]
        starts.append(began - since)
        finishes.append(ended - steps[-1]["time"])
        work += [
            _arithmetic(workload, train, step, step["time"] - before["time"], cluster, rank)
            for before, step in itertools.pairwise(steps)
        ]
    flops, seconds = (sum(column) for column in zip(*work, strict=True))
    return models, values | {
        "rank.flops": flops / seconds,
        "train.start_seconds": fmean(starts),
        "train.finish_seconds": fmean(finishes),
    }


def _arithmetic(
    workload: Workload,
    train: Train,
    step: dict[str, Any],
    seconds: float,
    cluster: ClusterSpec,
    rank: RankSpec,
) -> tuple[float, float]:
    """FLOPs of the slowest rank in a measured step, and its seconds minus those of waiting and optimizer.

    Args:
        step: Its entry in the metrics log.
        seconds: Since the end of the step before.
    """
    num_ranks = train.execution.fewest_workers
    batches = BatchMix.of(workload.texts, {step["task"]: 1})
    planned = cost.step(workload.shape, train, batches, num_ranks, cluster, rank)
    # Network and optimizer are assumed rates: they may not explain more than nine tenths of a step.
    others = planned.exposed + planned.optimizer + step["feed_wait"]
    return planned.compute * rank.flops, max(seconds - others, seconds / 10)


def _hosting(job: BagJob, shape: ModelShape) -> dict[str, float]:
    """What the host of a rank does for a step: launch operations, assemble a batch, and tokenize."""
    execution = job.recipe.train.execution
    on_rank: Any = ray.remote(_host).options(**task_options(execution))
    launch, collate, tokenize = result_of(on_rank.remote(job, "cuda" if execution.use_gpu else "cpu"))
    return {
        "host.launch_seconds": launch / (shape.layers * cost.OPERATIONS),
        "host.collate_seconds": collate,
        "host.tokenize_bytes_per_second": tokenize,
    }


def _host(job: BagJob, device: str) -> tuple[float, float, float]:
    """Seconds of the shortest forward pass, seconds to assemble a batch per text, and bytes tokenized per
    second."""
    from boom_ray.train.batch_loader import BatchLoader
    from boom_ray.train.preparation import prepare
    from boom_ray.train.share import sizes_of

    encoder, loader = prepare(job, device)
    num_ranks = 1 << 20  # more than texts, so that the last one has none to tokenize
    steps = range(min(NUM_BATCHES, loader.num_steps))
    batches = [loader.batch(step).batch for step in steps]
    assembling = _seconds(BatchLoader(job, encoder, num_ranks - 1, num_ranks).batch, steps)
    tokenizing = max(_seconds(loader.batch, steps) - assembling, 1e-6)
    num_texts = sum(len(batch.texts) for batch in batches)
    num_bytes = sum(int(sizes_of(batch.texts).sum()) for batch in batches)
    token = Tokens.of([[FIRST_WORD]])
    launching = _seconds(lambda _: encoder.encode_tokens(token), range(NUM_PASSES))
    return launching / NUM_PASSES, assembling / num_texts, num_bytes / tokenizing


def _seconds(call: Callable[[int], object], arguments: range) -> float:
    """Seconds of a call with each of the arguments, after one that is not measured."""
    call(arguments[0])
    since = time.perf_counter()
    for argument in arguments:
        call(argument)
    return time.perf_counter() - since


def _merging(small: Recipe, workload: Workload, models: list[str]) -> dict[str, float]:
    """Merge the models into a stage that is discarded: the start of the processes and one worker's rate."""
    settings = small.merge.model_copy(update={"weights": "equal", "density": 0.5})
    with staging.staged(storage.join(small.root, "merged")) as stage:
        since = time.time()
        _, merged = merge_into(stage, models, small.base_model.path, settings)
        whole = time.time() - since
    shapes = [workload.shape] * len(models)
    planned = planned_bags(small, shapes, workload.num_rows, workload.texts)
    rate = stages.merge_work(small, planned) / merged.seconds / settings.execution.num_workers
    return {"merge.start_seconds": whole - merged.seconds, "merge.bytes_per_second": rate}


@ray.remote(num_cpus=1)
def _measure(model: str, task: str | None, max_length: int | None, device: str) -> tuple[float, float, float]:
    """When this process was ready, seconds to load a model, and seconds to evaluate it, or to embed."""
    from boom_ray.evaluation.retrieval import RetrievalEvaluator
    from boom_ray.model import inference

    ready = time.time()
    encoder: Any = inference.load(storage.local_directory(model), device)
    loaded = time.time()
    if task:
        evaluator = RetrievalEvaluator(task, max_length)
        evaluator.compute_all_metrics(encoder)
    else:
        encoder.encode_tokens(Tokens.of([[FIRST_WORD] * LENGTH] * NUM_TEXTS))
    return ready, loaded - ready, time.time() - loaded


def _encoding(workload: Workload, cluster: ClusterSpec, model: str) -> dict[str, float]:
    """Rates of evaluation with every CPU or GPU busy, and of embedding, on CPUs derived from the former."""
    evaluate, shape = workload.recipe.evaluate, workload.shape
    on_gpu = evaluate.execution.use_gpu
    num_slots = max(1, min(64, int(cluster.num_gpus if on_gpu else cluster.num_cpus)))
    tasks = workload.evaluation if evaluate.data else []
    local = local_tasks.find(evaluate.data) if evaluate.data and tasks else []
    task = next((one.uri for one in local if one.type == "Retrieval"), None)
    texts = tasks[0] if task else EncodedTexts(NUM_TEXTS, NUM_TEXTS * LENGTH, NUM_TEXTS * LENGTH, LENGTH)
    measure: Any = _measure.options(num_gpus=1 if on_gpu else 0)
    since, arguments = time.time(), (model, task, evaluate.max_length, "cuda" if on_gpu else "cpu")
    results = result_of([measure.remote(*arguments) for _ in range(num_slots)])
    ready, loads, seconds = zip(*results, strict=True)
    rate = num_slots * shape.forward_flops(texts.computed, texts.length) / sum(seconds)
    values = {
        "evaluate.start_seconds": max(ready) - since,
        "evaluate.load_seconds": fmean(loads),
        "evaluate.score_seconds": 0.0,
        "evaluate.flops": rate,
    }
    on_cpus = rate * num_slots / cluster.num_ranks
    values["rank.encode_flops"] = on_cpus if cluster.on_cpus else _embedding_flops(shape, model)
    return values


def _embedding_flops(shape: ModelShape, model: str) -> float:
    """FLOP/s of one GPU that embeds."""
    task: Any = _embed
    seconds = result_of(task.options(num_gpus=1).remote(model))
    return shape.forward_flops(NUM_TEXTS * LENGTH, LENGTH) / seconds


@ray.remote
def _embed(model: str) -> float:
    """Seconds to embed texts on a GPU as `boom-ray embed` does, after a warm-up."""
    import torch

    encoder = directory.load_encoder(storage.local_directory(model), device="cuda", dtype=torch.bfloat16)
    texts = Tokens.of([[FIRST_WORD] * LENGTH] * NUM_TEXTS)
    encoder.encode_tokens(texts)
    since = time.perf_counter()
    encoder.encode_tokens(texts)
    return time.perf_counter() - since


@ray.remote(num_cpus=1)
def _write(uri: str) -> float:
    """Seconds to store a file of random bytes, which no store can compress."""
    noise, since = np.random.default_rng(0).bytes(PROBE_BYTES), time.perf_counter()
    storage.write_bytes(uri, noise)
    seconds = time.perf_counter() - since
    storage.delete_file(uri)
    return seconds


@ray.remote(num_cpus=1)
def _copy(device: str) -> float:
    """Seconds to copy a tensor to host memory as a checkpoint does, when its memory has been used before."""
    import torch

    from boom_ray.train.fragments import Fragment, Snapshot

    num_elements = PROBE_BYTES // 4
    probe = [Fragment("probe", num_elements, 0, torch.ones(num_elements, device=device))]
    next(iter(Snapshot(probe)))
    since = time.perf_counter()
    next(iter(Snapshot(probe)))
    return time.perf_counter() - since


def _storing(root: str, cluster: ClusterSpec) -> dict[str, float]:
    """Rates of the storage and of copies to host memory, and the seconds of a call to an actor."""
    remote_seconds = result_of(_write.remote(storage.join(root, "probe")))
    on_rank: Any = _copy.options(num_gpus=0 if cluster.on_cpus else 1)
    copy_seconds = result_of(on_rank.remote("cpu" if cluster.on_cpus else "cuda"))
    actor: Any = ProgressActor.remote()  # type: ignore[attr-defined]
    ray.get(actor.read.remote())
    since = time.perf_counter()
    for _ in range(NUM_CALLS):
        ray.get(actor.read.remote())
    return {
        "storage.bytes_per_second": PROBE_BYTES / remote_seconds,
        "checkpoint.copy_bytes_per_second": PROBE_BYTES / copy_seconds,
        "head.call_seconds": (time.perf_counter() - since) / NUM_CALLS,
    }

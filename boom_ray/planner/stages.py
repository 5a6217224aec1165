"""The duration of the stages other than training steps: checkpoints, merge, evaluation, embedding."""

from collections.abc import Mapping, Sequence

from boom_ray.evaluation.slots import MAX_THREADS
from boom_ray.planner import memory
from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.hardware import ClusterSpec, RankSpec
from boom_ray.planner.shape import ModelShape
from boom_ray.planner.texts import BatchMix, EncodedTexts, TaskTexts
from boom_ray.planner.workload import PlannedBag
from boom_ray.recipe import Recipe
from boom_ray.recipe.execution import EvaluateExecution
from boom_ray.train.schedule import longest_first

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def published_bytes(bag: PlannedBag) -> float:
    """Bytes of the model of one bag: all weights, or those of its adapter."""
    return DTYPE_BYTES[bag.train.save_dtype] * bag.shape.trained


def merged_bytes(recipe: Recipe, shape: ModelShape) -> float:
    """Bytes of the merged model."""
    return DTYPE_BYTES[recipe.merge.dtype] * shape.parameters


def merge_bytes(recipe: Recipe, bags: Sequence[PlannedBag]) -> float:
    """Bytes that a merge of bags reads and writes; adapters share one base model."""
    shape, reads_base = bags[0].shape, recipe.merge.space == "deltas" or any(bag.train.lora for bag in bags)
    read = sum(map(published_bytes, bags)) + reads_base * _base_bytes(recipe, shape)
    return read + merged_bytes(recipe, shape)


def merge_work(recipe: Recipe, bags: Sequence[PlannedBag]) -> float:
    """Bytes that pass through the workers of a merge, where an adapter is a whole model in float32."""
    shape = bags[0].shape
    models = sum(4 * shape.parameters if bag.train.lora else published_bytes(bag) for bag in bags)
    base = (recipe.merge.space == "deltas") * _base_bytes(recipe, shape)
    return models + base + merged_bytes(recipe, shape)


def _base_bytes(recipe: Recipe, shape: ModelShape) -> float:
    return memory.element_bytes(recipe.train) * shape.parameters


def merge_seconds(recipe: Recipe, bags: Sequence[PlannedBag], assume: Assumptions) -> float:
    """Seconds of the merge: the start of its processes, and its work at the rate of its workers."""
    size = merge_work(recipe, bags)
    start = assume.take("merge.start_seconds", 10.0, "s", "tests/benchmarks/RESULTS.md")
    rate = assume.take("merge.bytes_per_second", 0.8e9, "B/s", "of one worker, tests/benchmarks/RESULTS.md")
    most = assume.take("storage.total_bytes_per_second", 100e9, "B/s", "of all workers together, a guess")
    return start + size / min(most, recipe.merge.execution.num_workers * rate)


def evaluate_seconds(
    recipe: Recipe,
    shape: ModelShape,
    cluster: ClusterSpec,
    rank: RankSpec,
    tasks: list[EncodedTexts],
    num_models: int,
    stored: float,
    assume: Assumptions,
) -> float:
    """Seconds of evaluating `num_models` models on all tasks; see `boom_ray.evaluation.slots`.

    Args:
        stored: Bytes per second from storage.
    """
    if not tasks:
        return 0.0
    execution = recipe.evaluate.execution
    slots, threads = _evaluation_slots(execution, cluster, num_models)
    if execution.use_gpu:
        rate = assume.take("evaluate.flops", rank.encode_flops, "FLOP/s", "of one GPU, as in embedding")
    else:
        rate = threads * assume.take("evaluate.flops", 50e9, "FLOP/s", "of one CPU, a guess")
    score = assume.take("evaluate.score_seconds", 0.5, "s", "to rank the documents of a task")
    seconds = [score + shape.forward_flops(task.computed, task.length) / rate for task in tasks]
    shares = _evaluation_shares(slots, num_models, len(tasks))
    load = _load_seconds(shape, stored, assume)
    jobs = [load + sum(seconds[number::shares]) for number in range(shares)] * num_models
    return _start_seconds(assume) + longest_first(jobs, [1] * len(jobs), slots).end


def evaluation_nodes(recipe: Recipe, cluster: ClusterSpec, num_tasks: int, num_models: int) -> int:
    """Nodes that copy a model to be evaluated, each of them once; 0 without tasks."""
    slots, _ = _evaluation_slots(recipe.evaluate.execution, cluster, num_models)
    return min(_evaluation_shares(slots, num_models, num_tasks), cluster.num_nodes)


def _evaluation_slots(execution: EvaluateExecution, cluster: ClusterSpec, num_models: int) -> tuple[int, int]:
    """Processes that measure at the same time, and the CPU threads of each."""
    reserved = execution.resources_per_model
    if execution.use_gpu:
        return max(1, int(cluster.num_gpus / (reserved.get("GPU", 1.0) or 1.0))), 1
    cpus = max(1, int(cluster.num_cpus))
    threads = int(reserved.get("CPU", 0)) or max(1, min(MAX_THREADS, cpus // num_models))
    return max(1, cpus // threads), threads


def _evaluation_shares(slots: int, num_models: int, num_tasks: int) -> int:
    return min(num_tasks, max(1, slots // num_models))


def _start_seconds(assume: Assumptions) -> float:
    return assume.take("evaluate.start_seconds", 20.0, "s", "of the first processes")


def _load_seconds(shape: ModelShape, stored: float, assume: Assumptions) -> float:
    reading = 1 + 4 * shape.parameters / stored
    return assume.take("evaluate.load_seconds", reading, "s", "to copy a model from storage, and to read it")


def embed_seconds(
    shape: ModelShape,
    cluster: ClusterSpec,
    rank: RankSpec,
    texts: Mapping[str, TaskTexts],
    stored: float,
    assume: Assumptions,
) -> float:
    """Seconds of embedding `embed.rows` texts, as long as those of the corpus, with all ranks.

    Other processes tokenize the texts on all CPUs, and write the vectors, at the same time.

    Args:
        stored: Bytes per second to storage, of one process.
    """
    batches = BatchMix.of(texts, dict.fromkeys(texts, 1))
    num_texts = batches.mean(lambda batch: len(batch.lengths))
    rows = assume.take("embed.rows", 1e6, "texts", "an example")
    mean = batches.tokens / num_texts
    tokens = rows * assume.take("embed.tokens", mean, "tokens", "of the mean text of a batch")
    length = batches.mean(lambda batch: float((batch.lengths**2).sum())) / batches.tokens
    size = tokens * batches.mean(lambda batch: float(batch.sizes.sum())) / batches.tokens
    num_ranks, num_cpus = cluster.num_ranks, max(1.0, cluster.num_cpus)
    return (
        _start_seconds(assume)
        + _load_seconds(shape, stored, assume)
        + max(
            shape.forward_flops(tokens, length) / (num_ranks * rank.encode_flops),
            size / (num_cpus * rank.tokenize),
            4 * rows * shape.hidden / (num_ranks * stored),
        )
    )


def checkpoint_seconds(bag: PlannedBag, num_ranks: int, stored: float, copied: float) -> tuple[float, float]:
    """Seconds that a checkpoint stops training, and seconds of its upload, on the first rank.

    Args:
        stored: Bytes per second to storage.
        copied: Bytes per second to host memory.
    """
    own = memory.checkpoint_share(bag.shape, bag.train, num_ranks, bag.train.execution.zero_stage)
    return own / copied, own / stored


def average_seconds(bag: PlannedBag, num_ranks: int, bandwidth: float, copied: float) -> float:
    """Seconds of all averaged steps of a bag: ranks gather the master weights, and the first copies them.

    ZeRO 1 and 2 gather by a sum over all ranks, which sends twice as much.

    Args:
        bandwidth: Bytes per second between ranks.
        copied: Bytes per second to host memory.
    """
    from boom_ray.train.average import averaged_steps

    stage, size = bag.train.execution.zero_stage, memory.average_bytes(bag.shape, bag.train)
    sent = (0, 2, 2, 1)[stage] * size * (num_ranks - 1) / num_ranks
    return len(averaged_steps(bag.train.average, bag.steps)) * (sent / bandwidth + size / copied)

"""What a run takes beside training: checkpoints, the merge, the evaluation, and embedding afterwards."""

from collections.abc import Mapping

from boom_ray.planner import memory
from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.hardware import Cluster, Rank
from boom_ray.planner.shape import Shape
from boom_ray.planner.texts import Load
from boom_ray.recipe import Recipe
from boom_ray.train.schedule import longest_first

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
KEPT_CHECKPOINTS = 2


def merged_bytes(recipe: Recipe, shape: Shape) -> float:
    """Of the merged model."""
    return DTYPE_BYTES[recipe.merge.dtype] * shape.parameters


def merge_bytes(recipe: Recipe, shape: Shape, num_models: int) -> float:
    """That a merge of so many bags' models reads and writes."""
    sources = num_models + (recipe.merge.space == "deltas")
    return sources * memory.element_bytes(recipe.train) * shape.parameters + merged_bytes(recipe, shape)


def merge_seconds(recipe: Recipe, shape: Shape, assume: Assumptions) -> float:
    """Of a merge: its processes' start, and all bytes read and written at the rate of its workers."""
    size = merge_bytes(recipe, shape, len(recipe.bags.ratios))
    begin = assume.take("merge.start_seconds", 10.0, "s", "tests/benchmarks/RESULTS.md")
    rate = assume.take("merge.bytes_per_second", 0.8e9, "B/s", "of one worker, tests/benchmarks/RESULTS.md")
    most = assume.take("storage.total_bytes_per_second", 100e9, "B/s", "of all workers together, a guess")
    return begin + size / min(most, recipe.merge.execution.num_workers * rate)


def evaluate_seconds(
    recipe: Recipe, shape: Shape, cluster: Cluster, tasks: list[Load], assume: Assumptions
) -> float:
    """Of measuring base, bags and merged model on every task, one CPU each."""
    if not tasks:
        return 0.0
    flops = assume.take("evaluate.flops", 50e9, "FLOP/s", "of one CPU, a guess")
    begin = assume.take("evaluate.start_seconds", 20.0, "s", "of the first processes")
    reading = 1 + 4 * shape.parameters / 1e9
    load = assume.take("evaluate.load_seconds", reading, "s", "to read a model, a guess")
    score = assume.take("evaluate.score_seconds", 0.5, "s", "to rank the documents of a task")
    models = len(recipe.bags.ratios) + 2
    jobs = [load + score + shape.forward_flops(task.computed, task.length) / flops for task in tasks] * models
    return begin + longest_first(jobs, [1] * len(jobs), max(1, int(cluster.num_cpus))).end


def embed_seconds(
    shape: Shape, cluster: Cluster, rank: Rank, loads: Mapping[str, Load], assume: Assumptions
) -> float:
    """Of embedding a store of texts as long as those of the corpus with all ranks."""
    rows = assume.take("embed.rows", 1e6, "texts", "an example")
    own = sum(load.computed for load in loads.values()) / sum(load.texts for load in loads.values())
    tokens = assume.take("embed.tokens", own, "tokens", "of the mean text of a batch, with padding")
    length = max(load.length for load in loads.values())
    return shape.forward_flops(rows * tokens, length) / (cluster.num_ranks * rank.encode_flops)


def checkpoint_seconds(
    recipe: Recipe, shape: Shape, num_ranks: int, stored: float, assume: Assumptions
) -> tuple[float, float]:
    """How long a checkpoint stops training, and how long it then takes to storage, on the first rank.

    Args:
        stored: Bytes a second to storage.
    """
    whole, stage = memory.checkpoint_bytes(shape, recipe.train), recipe.train.execution.zero_stage
    model = memory.element_bytes(recipe.train) * (shape.parameters + shape.adapters)
    own = whole / num_ranks if stage == 3 else model + (whole - model) / (num_ranks if stage else 1)
    disk = assume.take("disk.bytes_per_second", 1e9, "B/s", "a local disk, a guess")
    return own / disk, own / stored

"""The merge on Ray: a coordinator checks and plans, workers stream one shard at a time."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import ray
import ray.exceptions
import torch

from boom_ray.artifact import FileEntry, Record, TensorEntry
from boom_ray.errors import BoomError
from boom_ray.merge.check import Inputs, check
from boom_ray.merge.plan import Shard, plan_shards
from boom_ray.merge.stream import Job, merge_shard
from boom_ray.recipe import SaveDtype
from boom_ray.session import result_of

MAX_RESTARTS = 3
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class MergeSpec:
    """How models are merged.

    Attributes:
        method: A name of `boom_ray.merge.methods.METHODS`.
        space: Merge differences to a base model, or the weights themselves.
        weights: `equal`, `size` (rows behind each model, from its record), or one number per model.
        dtype: Of the weights written.
        num_workers: Worker actors.
        max_shard_bytes: Largest output file.
    """

    method: str = "multislerp"
    space: Literal["deltas", "weights"] = "deltas"
    weights: Literal["equal", "size"] | list[float] = "equal"
    dtype: SaveDtype = "bfloat16"
    num_workers: int = 1
    max_shard_bytes: int = 4 << 30


@dataclass(frozen=True)
class Merged:
    """What was written: normalized weights, files with their tensors, sizes in bytes, and hashes."""

    weights: list[float]
    shards: list[Shard]
    sizes: dict[str, int]
    files: dict[str, FileEntry]
    tensors: dict[str, TensorEntry]


@ray.remote(num_cpus=1, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS)
class MergeWorker:
    """Streams shards. If its process dies, Ray starts another and gives it the same shard again."""

    def merge(self, job: Job, shard: Shard, coordinator: Any) -> tuple[FileEntry, dict[str, TensorEntry]]:
        """Write one shard, and tell the coordinator how far it is; see `merge_shard`."""
        return merge_shard(job, shard, lambda done: coordinator.tell.remote(shard.file, done))


@ray.remote(num_cpus=0)
class MergeCoordinator:
    """Gathers the models, checks them against each other, plans shards, and hands them to workers."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self.total = 0

    def tell(self, file: str, written: int) -> None:
        """Note how many bytes of a shard are written."""
        self.done[file] = written

    def progress(self) -> tuple[int, int]:
        """Output bytes written, and to be written."""
        return sum(self.done.values()), self.total

    def run(
        self, models: list[str], base: str | None, spec: MergeSpec, target: str, workers: list[Any], own: Any
    ) -> Merged:
        """Merge; returns what was written.

        Args:
            target: URI of the directory that the shards are written to.
            workers: Handles of `MergeWorker` actors.
            own: Handle of this actor, for them to report to.

        Raises:
            BoomError: as `check` and `merge_shard` do.
        """
        inputs = check(models, base)
        weights = _weights(inputs, spec)
        job = Job(inputs, spec.method, weights, getattr(torch, spec.dtype), target)
        sizes = {n: p.num_elements * job.dtype_of(n).itemsize for n, p in inputs.places[0].items()}
        shards = plan_shards(sizes, len(workers), spec.max_shard_bytes)
        self.total = sum(sizes.values())
        files, tensors = _hand_out(ray.put(job), shards, workers, own)
        return Merged(weights, shards, sizes, files, tensors)


def _hand_out(
    job: Any, shards: list[Shard], workers: list[Any], coordinator: Any
) -> tuple[dict[str, FileEntry], dict[str, TensorEntry]]:
    """Give every worker a shard, and the next one when it is done; none is left running, however it ends."""
    files: dict[str, FileEntry] = {}
    tensors: dict[str, TensorEntry] = {}
    free, waiting = list(workers), list(shards)
    running: dict[Any, tuple[Any, Shard]] = {}
    try:
        while waiting or running:
            while free and waiting:
                worker, shard = free.pop(), waiting.pop(0)
                running[worker.merge.remote(job, shard, coordinator)] = worker, shard
            while free:  # its CPU may be what another worker waits for
                ray.kill(free.pop())
            (finished,), _ = ray.wait(list(running))
            worker, shard = running.pop(finished)
            files[shard.file], of_shard = _written(finished, shard)
            tensors |= of_shard
            free.append(worker)
    finally:
        _stop(workers, list(running))
    return files, tensors


def _written(reference: Any, shard: Shard) -> tuple[FileEntry, dict[str, TensorEntry]]:
    try:
        written: tuple[FileEntry, dict[str, TensorEntry]] = result_of(reference)
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
        raise BoomError(
            f"{shard.file}: the process that merges it died, also after {MAX_RESTARTS} restarts. "
            "Find what ends it in the dashboard (often too little memory), and run the command again"
        ) from error
    return written


def _stop(workers: list[Any], running: list[Any]) -> None:
    """End workers: one that began a shard only now would make the stage anew after it was deleted."""
    for worker in workers:
        ray.kill(worker)
    if running:
        ray.wait(running, num_returns=len(running), timeout=STOP_SECONDS)


def _weights(inputs: Inputs, spec: MergeSpec) -> list[float]:
    """One weight per model, with sum 1."""
    given = spec.weights
    if given == "equal":
        values = [1.0] * len(inputs.models)
    elif given == "size":
        values = [_rows(model, record) for model, record in zip(inputs.models, inputs.records, strict=True)]
    else:
        values = [float(weight) for weight in given]
    if len(values) != len(inputs.models):
        raise BoomError(f"got {len(values)} weights for {len(inputs.models)} models; give one per model")
    total = math.fsum(values)
    if not math.isfinite(total) or abs(total) <= 1e-12 * math.fsum(abs(value) for value in values):
        raise BoomError(f"the weights {values} add up to {total:g}; give weights with another sum")
    return [value / total for value in values]


def _rows(model: str, record: Record | None) -> float:
    if record is None or "rows" not in record.config:
        raise BoomError(f"{model}: has no record of its rows, which weights by size need. Give the weights")
    return float(record.config["rows"])

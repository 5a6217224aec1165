"""The merge on Ray: a coordinator checks and plans, workers stream one shard at a time."""

import math
import os
import time
import uuid
from dataclasses import dataclass
from typing import Any, Literal

import ray

from boom_ray import storage
from boom_ray.artifact import FileEntry, Record, Stage, TensorEntry
from boom_ray.errors import BoomError
from boom_ray.merge.check import Inputs, check
from boom_ray.merge.methods import METHODS
from boom_ray.merge.plan import Shard, index_json, plan_shards
from boom_ray.merge.stream import Job, merge_shard
from boom_ray.merge.tensors import INDEX
from boom_ray.model import directory
from boom_ray.model.encoder import DTYPES
from boom_ray.progress import Progress
from boom_ray.recipe import SaveDtype
from boom_ray.session import result_of

POLL_SECONDS = 0.2
MAX_RESTARTS = 3
MIB = 1 << 20


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
class _Merged:
    weights: list[float]
    shards: list[Shard]
    sizes: dict[str, int]
    files: dict[str, FileEntry]
    tensors: dict[str, TensorEntry]


@ray.remote(num_cpus=1, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS)
class MergeWorker:
    """Streams shards. If its process dies, Ray starts another and gives it the same shard again."""

    def __init__(self, job: Job, coordinator: Any) -> None:
        self.job, self.coordinator = job, coordinator

    def merge(self, shard: Shard) -> tuple[FileEntry, dict[str, TensorEntry]]:
        """Write one shard; see `merge_shard`."""
        return merge_shard(self.job, shard, lambda done: self.coordinator.tell.remote(shard.file, done))


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

    def run(self, models: list[str], base: str | None, spec: MergeSpec, target: str, own: Any) -> _Merged:
        """Merge; returns what was written.

        Args:
            target: URI of the directory that the shards are written to.
            own: Handle of this actor, for its workers to report to.

        Raises:
            BoomError: as `check` and `merge_shard` do.
        """
        inputs = check(models, base)
        weights = _weights(inputs, spec)
        job = Job(inputs, spec.method, weights, DTYPES[spec.dtype], target)
        sizes = {n: p.num_elements * job.dtype_of(n).itemsize for n, p in inputs.places[0].items()}
        shards = plan_shards(sizes, spec.num_workers, spec.max_shard_bytes)
        self.total = sum(sizes.values())
        files, tensors = self._run_workers(job, shards, min(spec.num_workers, len(shards)), own)
        return _Merged(weights, shards, sizes, files, tensors)

    def _run_workers(
        self, job: Job, shards: list[Shard], num_workers: int, own: Any
    ) -> tuple[dict[str, FileEntry], dict[str, TensorEntry]]:
        merge_id = uuid.uuid4().hex[:6]
        workers = [
            MergeWorker.options(name=f"merge-{merge_id}-worker-{n + 1}").remote(job, own)  # type: ignore[attr-defined]
            for n in range(num_workers)
        ]
        waiting = list(shards)
        running = {
            worker.merge.remote(shard): (worker, shard) for worker in workers if (shard := waiting.pop(0))
        }
        files: dict[str, FileEntry] = {}
        tensors: dict[str, TensorEntry] = {}
        while running:
            (finished,), _ = ray.wait(list(running))
            worker, shard = running.pop(finished)
            files[shard.file], of_shard = result_of(finished)
            tensors |= of_shard
            if waiting:
                shard = waiting.pop(0)
                running[worker.merge.remote(shard)] = worker, shard
        return files, tensors


def merge_into(stage: Stage, models: list[str], base: str | None, spec: MergeSpec) -> dict[str, Any]:
    """Fill a stage with everything of a merged model but its card and record.

    Args:
        models: URIs of M models of one architecture.
        base: URI of the model they were trained from; needed when differences to it are merged.

    Returns:
        What the record says of the merge: method, space, weights, dtype.

    Raises:
        BoomError: listing why the models cannot be merged.
    """
    if spec.method not in METHODS:
        raise BoomError(f"no merge method {spec.method!r}; allowed: {', '.join(METHODS)}")
    if spec.space == "deltas" and base is None:
        raise BoomError("merging differences needs the base model. Give it, or merge in weight space")
    base = base if spec.space == "deltas" else None
    if base is not None and base.startswith("hf://"):
        base = storage.local_directory(base)
    name = f"merge-{uuid.uuid4().hex[:6]}-coordinator"
    coordinator = MergeCoordinator.options(name=name, max_concurrency=4).remote()  # type: ignore[attr-defined]
    merged = _await(coordinator, coordinator.run.remote(models, base, spec, stage.uri, coordinator))
    stage.entries |= merged.files
    stage.tensors |= merged.tensors
    if len(merged.shards) > 1:
        with open(os.path.join(stage.local, INDEX), "w", encoding="utf-8") as file:
            file.write(index_json(merged.shards, merged.sizes))
    directory.copy_all_but_weights(models[0], stage.local, spec.dtype)
    return {"method": spec.method, "space": spec.space, "weights": merged.weights, "dtype": spec.dtype}


def _await(coordinator: Any, reference: Any) -> _Merged:
    """The coordinator's result, with progress on the way."""
    started = time.monotonic()
    with Progress() as progress:
        while True:
            finished, _ = ray.wait([reference], timeout=POLL_SECONDS)
            done, total = ray.get(coordinator.progress.remote())
            if total:
                rate = done / 1e9 / (time.monotonic() - started)
                progress.update("merge", done // MIB, total // MIB, f"MiB  {rate:.2f} GB/s written")
            if finished:
                return result_of(reference)


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
    if not math.isfinite(total) or abs(total) < 1e-12:
        raise BoomError(f"the weights {values} add up to {total:g}; give weights with another sum")
    return [value / total for value in values]


def _rows(model: str, record: Record | None) -> float:
    if record is None or "rows" not in record.config:
        raise BoomError(f"{model}: has no record of its rows, which weights by size need. Give the weights")
    return float(record.config["rows"])

"""The merge on Ray: a coordinator plans; each worker streams one file, or a slice of one, at a time."""

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import ray

from boom_ray import storage
from boom_ray.artifacts.tensors import create_file
from boom_ray.merge.as_adapter import plan_adapter
from boom_ray.merge.check_inputs import check_inputs
from boom_ray.merge.layer_groups import Weights
from boom_ray.merge.merge_job import GramMatrix, MergeJob, WrittenShard
from boom_ray.merge.merge_metrics import MergeMetrics
from boom_ray.merge.methods import METHODS
from boom_ray.merge.settings import resolve_weights
from boom_ray.merge.shards import Shard, plan_shards, slices
from boom_ray.merge.worker_pool import WorkerPool
from boom_ray.recipe import Merge

# A process may be lost to a full memory or a preempted node. Its task can be repeated: a file is written
# again from its start, a slice at its offset. So Ray restarts the actor and repeats that one task.
MAX_RESTARTS = 3
SLICE_MULTIPLE = 1 << 20  # elements; a multiple of `gram.BLOCK`: slices have the blocks of the whole tensor
LOG_SECONDS = 5.0


@dataclass(frozen=True)
class MergeOutput:
    """A finished merge.

    Attributes:
        directory: URI of the directory whose configuration and tokenizer the merged model gets.
        weights: One per model, or by group of layers, as they were used.
        shards: The planned files.
        sizes: Bytes of each tensor.
        written: The written files with their tensors.
        bytes_read: Bytes of all inputs; those that several share count once.
        seconds: From the start of the first worker to the last written byte.
    """

    directory: str
    weights: Weights
    shards: list[Shard]
    sizes: dict[str, int]
    written: list[WrittenShard]
    bytes_read: int
    seconds: float

    @property
    def grams(self) -> dict[str, GramMatrix]:
        """The Gram matrix of every tensor."""
        return {name: gram for part in self.written for name, gram in part.grams.items()}

    @property
    def reusable(self) -> dict[str, GramMatrix]:
        """The Gram matrices that another merge of the same models can use: those of tensors that differ.

        The others are left out because a Gram matrix does not show that tensors are equal bit for bit.
        """
        equal = set().union(*(part.equal for part in self.written))
        return {name: gram for name, gram in self.grams.items() if name not in equal}


@ray.remote(num_cpus=1, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS)
class MergeWorker:
    """Streams files. If its process dies, Ray starts a new one and repeats its task."""

    def __init__(self, name: str) -> None:
        import torch

        from boom_ray.merge import adapter_writer, cut, stream

        torch.set_num_threads(1)  # workers are the unit of parallelism; each has one CPU
        self.name, self.cut, self.stream, self.adapter_writer = name, cut, stream, adapter_writer

    def __repr__(self) -> str:
        return self.name

    def merge(self, job: MergeJob, shard: Shard, coordinator: Any) -> WrittenShard:
        """Write one file, and report progress to the coordinator; see `merge_shard` and `write_adapter`."""
        as_adapter = job.settings.adapter_rank is not None
        write = self.adapter_writer.write_adapter if as_adapter else self.stream.merge_shard
        return write(job, shard, lambda written: coordinator.report.remote(shard.file, written))

    def partial_gram(self, job: MergeJob, name: str, start: int, count: int) -> tuple[GramMatrix, bool]:
        """See `boom_ray.merge.cut`."""
        return self.cut.partial_gram(job, name, start, count)

    def write_slice(
        self, job: MergeJob, shard: Shard, start: int, count: int, equal: bool, coordinator: Any
    ) -> None:
        """See `boom_ray.merge.cut`."""
        self.cut.write_slice(job, shard, start, count, equal)
        (name,) = shard.tensors
        size = job.num_bytes(name) * count // job.num_elements(name)
        coordinator.report.remote(f"{shard.file} from {start}", size)

    def finish_file(self, job: MergeJob, shard: Shard, equal: set[str]) -> WrittenShard:
        """See `boom_ray.merge.cut`."""
        return self.cut.finish_file(job, shard, equal)

    def check_recorded(self, job: MergeJob, index: int, name: str) -> None:
        """See `boom_ray.merge.cut`."""
        self.cut.check_recorded(job, index, name)


@ray.remote(num_cpus=0, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS)
class MergeCoordinator:
    """Checks the models against each other, plans files, and assigns them to workers.

    If its process dies, Ray starts a new one, which assigns all files again.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.written: dict[str, int] = {}  # by part, so that a part that is written again counts once
        self.total = self.read = 0
        self.started = self.logged = time.monotonic()
        self.metrics = MergeMetrics(name.removesuffix("-coordinator"))

    def __repr__(self) -> str:
        return self.name

    def report(self, part: str, written: int) -> None:
        """Record how many bytes of a part of the output are written, and print progress at intervals."""
        self.written[part] = written
        done, total, read = self.progress()
        self.metrics.progress(done, total, read)
        if time.monotonic() - self.logged > LOG_SECONDS:
            rate = (read + done) / (time.monotonic() - self.started) / 1e9
            print(f"{done >> 20:,} of {total >> 20:,} MiB written, {rate:.2f} GB/s", flush=True)
            self.logged = time.monotonic()

    def progress(self) -> tuple[int, int, int]:
        """Bytes written, bytes to write in total, and bytes read for those written."""
        done = sum(self.written.values())
        return done, self.total, self.read * done // max(self.total, 1)

    def run(
        self,
        models: list[str],
        base: str | None,
        settings: Merge,
        target: str,
        workers: list[Any],
        coordinator: Any,
        grams: dict[str, GramMatrix] | None = None,
    ) -> MergeOutput:
        """Merge models into files.

        Args:
            models: URIs.
            base: URI of the base model.
            target: URI of the directory that the files are written to.
            workers: Handles of `MergeWorker` actors.
            coordinator: Handle of this actor, which workers report to.
            grams: Gram matrices cached from an earlier merge of the same models in the same space.

        Raises:
            InputError, StorageError: as `check_inputs` and `merge_shard` do.
            ClusterError: if workers die too often.
        """
        checked = check_inputs(models, base)
        job = MergeJob(
            inputs=checked.models,
            base=checked.base if settings.space == "deltas" else None,
            settings=settings,
            weights=resolve_weights(checked.models, settings),
            target=target,
            grams=grams or {},
        )
        sizes, shards = plan_adapter(job) if settings.adapter_rank else _plan(job, len(workers))
        ray.wait([worker.__ray_ready__.remote() for worker in workers])
        self.total, self.started = sum(sizes.values()), time.monotonic()
        self.read = sum(
            place.num_bytes for place in {p for model in job.all_inputs for p in model.all_places}
        )
        written = _ShardSchedule(job, shards, workers, coordinator).run()
        seconds = time.monotonic() - self.started
        return MergeOutput(checked.directory, job.weights, shards, sizes, written, self.read, seconds)


def _plan(job: MergeJob, num_workers: int) -> tuple[dict[str, int], list[Shard]]:
    """Bytes of each tensor as it is written, and the files."""
    sizes = {name: job.num_bytes(name) for name in job.inputs[0].places}
    # Slices are combined from one Gram matrix; thresholds of TIES would have to be shared as well.
    can_cut = METHODS[job.settings.method].coefficients is not None
    return sizes, plan_shards(sizes, num_workers, job.settings.execution.max_shard_bytes, can_cut)


class _ShardSchedule:
    """The order of tasks: files of cut tensors first, in three steps; then all other files, in one."""

    def __init__(self, job: MergeJob, shards: list[Shard], workers: list[Any], coordinator: Any) -> None:
        self.job, self.shards, self.coordinator = job, shards, coordinator
        self.shared_job = ray.put(job)
        self.written: list[WrittenShard] = []
        self.pool = WorkerPool(
            workers,
            f"a merge worker died, also after {MAX_RESTARTS} restarts. Find the cause in the dashboard "
            "(often too little memory), and run the command again",
        )

    def run(self) -> list[WrittenShard]:
        for shard in self.shards:
            if shard.num_slices > 1:
                self._cut(shard)
            else:
                self._whole(self.shared_job, shard)
        self.pool.run()
        return self.written

    def _whole(self, job: Any, shard: Shard) -> None:
        self.pool.add("merge", job, shard, self.coordinator, then=self.written.append)

    def _cut(self, shard: Shard) -> None:
        """Verify the tensor, and accumulate its Gram matrix slice by slice unless it is cached."""
        (name,) = shard.tensors
        parts = slices(self.job.num_elements(name), shard.num_slices, SLICE_MULTIPLE)
        for index, model in enumerate(self.job.all_inputs):
            if model.recorded_hash(name):
                self.pool.add("check_recorded", self.shared_job, index, name, then=lambda _: None)
        if name in self.job.grams:
            self._write(shard, parts, self.job.grams[name], equal=False)
            return
        found: list[tuple[GramMatrix, bool]] = []

        def add_up(part: tuple[GramMatrix, bool]) -> None:
            found.append(part)
            if len(found) == len(parts):
                # Slices finish in any order; `fsum` is exact, so the sum does not depend on it.
                gram = [
                    [math.fsum(values) for values in zip(*rows, strict=True)]
                    for rows in zip(*(gram for gram, _ in found), strict=True)
                ]
                self._write(shard, parts, gram, all(equal for _, equal in found))

        for start, count in parts:
            self.pool.add("partial_gram", self.shared_job, name, start, count, then=add_up)

    def _write(self, shard: Shard, parts: list[tuple[int, int]], gram: GramMatrix, equal: bool) -> None:
        """Write a file slice by slice, from the Gram matrix of its one tensor."""
        (name,) = shard.tensors
        job = replace(self.job, grams={name: gram})
        if not storage.is_local(job.target):  # an object is written front to back, by one worker
            self._whole(ray.put(self.job if equal else job), shard)
            return
        create_file(storage.join(job.target, shard.file), job.declared(shard.tensors))
        shared, num_left = ray.put(job), len(parts)

        def finish(_: None) -> None:
            nonlocal num_left
            num_left -= 1
            if not num_left:
                self.pool.add(
                    "finish_file", shared, shard, {name} if equal else set(), then=self.written.append
                )

        for start, count in parts:
            self.pool.add("write_slice", shared, shard, start, count, equal, self.coordinator, then=finish)

"""The merge on Ray: a coordinator checks and plans, workers stream one file, or a part of one, at a time."""

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ray

from boom_ray import storage
from boom_ray.artifacts.tensors import NAMES, create_file
from boom_ray.errors import BoomError, InputError
from boom_ray.merge.check import check
from boom_ray.merge.job import Job, Products, Written
from boom_ray.merge.methods import METHODS, Options
from boom_ray.merge.metrics import MergeMetrics
from boom_ray.merge.plan import Shard, plan_shards, slices
from boom_ray.merge.pool import Pool
from boom_ray.merge.source import Source
from boom_ray.recipe import SaveDtype

MAX_RESTARTS = 3
SLICE_MULTIPLE = 1 << 20  # elements; slices begin where blocks and pages do
SAY_SECONDS = 5.0


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
        options: Of the method.
        memory_bytes: Anonymous memory of one worker.
    """

    method: str = "multislerp"
    space: Literal["deltas", "weights"] = "deltas"
    weights: Literal["equal", "size"] | list[float] = "equal"
    dtype: SaveDtype = "bfloat16"
    num_workers: int = 1
    max_shard_bytes: int = 4 << 30
    options: Options = field(default_factory=Options)
    memory_bytes: int = 1 << 30


@dataclass(frozen=True)
class Merged:
    """What was written.

    Attributes:
        models: Their URIs.
        directory: URI of the directory whose configuration and tokenizer are the merged model's.
        weights: One per model, as they were used.
        sizes: Bytes of each tensor.
        written: The files with their tensors.
        bytes_read: Of all inputs.
        seconds: From the first worker being up to the last byte written.
    """

    models: list[str]
    directory: str
    weights: list[float]
    shards: list[Shard]
    sizes: dict[str, int]
    written: list[Written]
    bytes_read: int
    seconds: float

    @property
    def products(self) -> dict[str, Products]:
        """The Gram matrix of every tensor."""
        return {name: products for part in self.written for name, products in part.products.items()}

    @property
    def reusable(self) -> dict[str, Products]:
        """The Gram matrices that another merge of the same models needs: of all tensors that it combines."""
        equal = set().union(*(part.equal for part in self.written))
        return {name: products for name, products in self.products.items() if name not in equal}


@ray.remote(num_cpus=1, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS)
class MergeWorker:
    """Streams files. If its process dies, Ray starts another and gives it the same task again."""

    def __init__(self, name: str) -> None:
        import torch

        from boom_ray.merge import cut, stream

        torch.set_num_threads(1)
        self.name, self.cut, self.stream = name, cut, stream

    def __repr__(self) -> str:
        return self.name

    def merge(self, job: Job, shard: Shard, coordinator: Any) -> Written:
        """Write one file, and tell the coordinator how far it is; see `merge_shard`."""
        return self.stream.merge_shard(job, shard, lambda done: coordinator.tell.remote(shard.file, done))

    def partial_gram(self, job: Job, name: str, start: int, count: int) -> tuple[Products, bool]:
        """See `boom_ray.merge.cut`."""
        return self.cut.partial_gram(job, name, start, count)

    def fill(self, job: Job, shard: Shard, start: int, count: int, equal: bool, coordinator: Any) -> None:
        """See `boom_ray.merge.cut`."""
        self.cut.fill(job, shard, start, count, equal)
        (name,) = shard.tensors
        size = job.num_bytes(name) * count // job.sources[0].places[name].num_elements
        coordinator.tell.remote(f"{shard.file} from {start}", size)

    def seal(self, job: Job, shard: Shard, equal: set[str]) -> Written:
        """See `boom_ray.merge.cut`."""
        return self.cut.seal(job, shard, equal)

    def check_recorded(self, job: Job, index: int, name: str) -> None:
        """See `boom_ray.merge.cut`."""
        self.cut.check_recorded(job, index, name)


@ray.remote(num_cpus=0, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS)
class MergeCoordinator:
    """Gathers the models, checks them against each other, plans files, and hands them to workers.

    If its process dies, Ray starts another, which hands all of them out again.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.done: dict[str, int] = {}
        self.total = self.read = 0
        self.started = self.said = time.monotonic()
        self.metrics = MergeMetrics(name.removesuffix("-coordinator"))

    def __repr__(self) -> str:
        return self.name

    def tell(self, part: str, written: int) -> None:
        """Note how many bytes of a part of the output are written, and log it from time to time."""
        self.done[part] = written
        done, total, read = self.progress()
        self.metrics.progress(done, total, read)
        if time.monotonic() - self.said > SAY_SECONDS:
            rate = (read + done) / (time.monotonic() - self.started) / 1e9
            print(f"{done >> 20:,} of {total >> 20:,} MiB written, {rate:.2f} GB/s", flush=True)
            self.said = time.monotonic()

    def progress(self) -> tuple[int, int, int]:
        """Bytes written, to be written, and read for what is written."""
        done = sum(self.done.values())
        return done, self.total, self.read * done // max(self.total, 1)

    def run(
        self,
        models: list[str],
        base: str | None,
        spec: MergeSpec,
        target: str,
        workers: list[Any],
        own: Any,
        known: dict[str, Products] | None = None,
    ) -> Merged:
        """Merge; returns what was written.

        Args:
            target: URI of the directory that the files are written to.
            workers: Handles of `MergeWorker` actors.
            own: Handle of this actor, for them to report to.
            known: Gram matrices of an earlier merge of the same models.

        Raises:
            BoomError: as `check` and `merge_shard` do.
        """
        inputs = check(models, base)
        weights = resolve_weights(inputs.sources, spec)
        job = Job(
            sources=inputs.sources,
            base=inputs.base if spec.space == "deltas" else None,
            method=spec.method,
            weights=weights,
            options=spec.options,
            dtype=NAMES[spec.dtype],
            target=target,
            memory_bytes=spec.memory_bytes,
            products=known or {},
        )
        sizes = {name: job.num_bytes(name) for name in job.sources[0].places}
        can_cut = METHODS[spec.method].coefficients is not None
        shards = plan_shards(sizes, len(workers), spec.max_shard_bytes, can_cut)
        ray.wait([worker.__ray_ready__.remote() for worker in workers])
        self.total, self.started = sum(sizes.values()), time.monotonic()
        self.read = sum(place.num_bytes for source in job.all_sources for place in source.places.values())
        written = _Schedule(job, shards, workers, own).run()
        seconds = time.monotonic() - self.started
        return Merged(models, job.sources[0].directory, weights, shards, sizes, written, self.read, seconds)


class _Schedule:
    """What is done in which order: files that are cut first, in three steps; all others in one."""

    def __init__(self, job: Job, shards: list[Shard], workers: list[Any], coordinator: Any) -> None:
        self.job, self.shards, self.coordinator = job, shards, coordinator
        self.shared_job = ray.put(job)
        self.written: list[Written] = []
        self.pool = Pool(
            workers,
            f"a merge worker died, also after {MAX_RESTARTS} restarts. Find what ends it in the dashboard "
            "(often too little memory), and run the command again",
        )

    def run(self) -> list[Written]:
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
        (name,) = shard.tensors
        parts = slices(self.job.sources[0].places[name].num_elements, shard.num_slices, SLICE_MULTIPLE)
        for index, source in enumerate(self.job.all_sources):
            if source.recorded_hash(name):
                self.pool.add("check_recorded", self.shared_job, index, name, then=lambda _: None)
        if name in self.job.products:
            self._fill(shard, parts, self.job.products[name], equal=False)
            return
        found: list[tuple[Products, bool]] = []

        def gather(part: tuple[Products, bool]) -> None:
            found.append(part)
            if len(found) == len(parts):
                products = [
                    [math.fsum(values) for values in zip(*rows, strict=True)]
                    for rows in zip(*(products for products, _ in found), strict=True)
                ]
                self._fill(shard, parts, products, all(equal for _, equal in found))

        for start, count in parts:
            self.pool.add("partial_gram", self.shared_job, name, start, count, then=gather)

    def _fill(self, shard: Shard, parts: list[tuple[int, int]], products: Products, equal: bool) -> None:
        (name,) = shard.tensors
        job = replace(self.job, products={name: products})
        if not storage.is_local(job.target):  # objects are written front to back, by one worker
            self._whole(ray.put(self.job if equal else job), shard)
            return
        create_file(storage.join(job.target, shard.file), job.declared(shard.tensors))
        shared, left = ray.put(job), [len(parts)]

        def seal(_: None) -> None:
            left[0] -= 1
            if not left[0]:
                self.pool.add("seal", shared, shard, {name} if equal else set(), then=self.written.append)

        for start, count in parts:
            self.pool.add("fill", shared, shard, start, count, equal, self.coordinator, then=seal)


def resolve_weights(sources: list[Source], spec: MergeSpec) -> list[float]:
    """One weight per model; with sum 1 if the method, or the spec, has it so."""
    given, count = spec.weights, len(sources)
    if given == "equal":
        values = [1.0] * count
    elif given == "size":
        rows = [_rows(source) for source in sources]
        values = [count * value / math.fsum(rows) for value in rows]
    else:
        values = [float(weight) for weight in given]
    if len(values) != count:
        raise BoomError(f"got {len(values)} weights for {count} models; give one per model")
    method = METHODS[spec.method]
    total, size = math.fsum(values), math.fsum(abs(value) for value in values)
    if not math.isfinite(size) or not size:
        raise BoomError(f"the weights {values} add up to {total:g}; give weights with another sum")
    normalize = method.normalizes if spec.options.normalize is None else spec.options.normalize
    if not normalize or spec.method == "ties":  # which divides by the weights of those that agree
        return values
    if abs(total) <= 1e-12 * size:
        raise BoomError(f"the weights {values} add up to {total:g}; give weights with another sum")
    return [value / total for value in values]


def _rows(source: Source) -> float:
    if source.record is None or source.record.config.rows is None:
        raise InputError(
            f"{source.uri}: has no record of its rows, which weights by size need. Give the weights"
        )
    return float(source.record.config.rows)

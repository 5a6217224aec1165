"""A merge from its driver: starts the coordinator, shows progress, and fills the stage."""

import os
import time
import uuid
from typing import Any

import ray

from boom_ray import storage
from boom_ray.artifact import Stage
from boom_ray.errors import BoomError
from boom_ray.merge.actors import MergeCoordinator, Merged, MergeSpec, MergeWorker
from boom_ray.merge.methods import METHODS
from boom_ray.merge.plan import index_json
from boom_ray.merge.tensors import INDEX
from boom_ray.model import directory
from boom_ray.progress import Progress
from boom_ray.session import result_of

POLL_SECONDS = 0.2
MIB = 1 << 20


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
    name = f"merge-{uuid.uuid4().hex[:6]}"
    coordinator_class: Any = MergeCoordinator.options(name=f"{name}-coordinator", max_concurrency=4)  # type: ignore[attr-defined]
    coordinator, workers = coordinator_class.remote(), _start_workers(name, spec.num_workers)
    run = coordinator.run.remote(models, base, spec, stage.uri, workers, coordinator)
    merged = _await(coordinator, run)
    stage.entries |= merged.files
    stage.tensors |= merged.tensors
    if len(merged.shards) > 1:
        with open(os.path.join(stage.local, INDEX), "w", encoding="utf-8") as file:
            file.write(index_json(merged.shards, merged.sizes))
    directory.copy_all_but_weights(models[0], stage.local, spec.dtype)
    return {"method": spec.method, "space": spec.space, "weights": merged.weights, "dtype": spec.dtype}


def _start_workers(name: str, num_workers: int) -> list[Any]:
    """Worker actors under names that the dashboard shows."""
    worker: Any = MergeWorker
    return [worker.options(name=f"{name}-worker-{number + 1}").remote() for number in range(num_workers)]


def _await(coordinator: Any, reference: Any) -> Merged:
    """The coordinator's result, with progress on the way."""
    started = time.monotonic()
    with Progress() as progress:
        while not ray.wait([reference], timeout=POLL_SECONDS)[0]:
            done, total = ray.get(coordinator.progress.remote())
            if not done:
                started = time.monotonic()
            elif done < total:
                rate = done / 1e6 / (time.monotonic() - started)
                progress.update("merge", done // MIB, total // MIB, f"MiB written, {rate:,.0f} MB/s")
        merged: Merged = result_of(reference)
        size = sum(merged.sizes.values()) // MIB
        progress.update("merge", size, size, f"MiB written in {len(merged.shards)} files")
        return merged

"""A merge from its driver: starts the actors, shows progress, and writes the merged model into a stage."""

import os
import time
import uuid
from typing import Any

import numpy as np
import ray

from boom_ray import storage
from boom_ray.artifacts.contents import MergeConfig
from boom_ray.artifacts.staging import Stage
from boom_ray.artifacts.tensors import INDEX
from boom_ray.merge import distances
from boom_ray.merge.actors import MergeCoordinator, MergeOutput, MergeWorker
from boom_ray.merge.layer_groups import weights_of
from boom_ray.merge.merge_job import GramMatrix
from boom_ray.merge.methods import METHODS, Array, DirectionsCancel, coefficients_of
from boom_ray.merge.placement import REMEDY, WORKER, placements
from boom_ray.merge.settings import check_settings
from boom_ray.merge.shards import index_json
from boom_ray.model import adapter, directory
from boom_ray.recipe import Lora, Merge
from boom_ray.runtime.cluster import here, result_of
from boom_ray.runtime.demand import Wait
from boom_ray.runtime.progress import Progress

POLL_SECONDS = 0.1
MIB = 1 << 20
RECORDED = ("method", "space", "dtype", "scale", "iterations", "density", "seed", "normalize", "adapter_rank")


def merge_into(
    stage: Stage,
    models: list[str],
    base: str | None,
    settings: Merge,
    grams: dict[str, GramMatrix] | None = None,
) -> tuple[MergeConfig, MergeOutput]:
    """Write everything of a merged model into a stage, except its card and record.

    Args:
        models: URIs of M models of one architecture.
        base: URI of the model they were trained from; needed if task vectors are merged.
        grams: Gram matrices cached from an earlier merge of the same models in the same space.

    Returns:
        The settings for the record, and details of the merge.

    Raises:
        InputError: listing why the models cannot be merged.
        StorageError: if an input is damaged, or a store fails.
        ClusterError: if no node can read the inputs, or workers die too often.
    """
    check_settings(settings, len(models), base)
    labels = [storage.name_of(model) for model in models]
    uris = [readable(model) for model in models], readable(base) if base else None
    merged = _merge_on_ray(*uris, settings, stage.uri, grams)
    for part in merged.written:
        stage.entries[part.name] = part.file
        stage.tensors |= part.tensors
    if len(merged.shards) > 1:
        with open(os.path.join(stage.local, INDEX), "w", encoding="utf-8") as file:
            file.write(index_json(merged.shards, merged.sizes))
    if settings.adapter_rank and base:
        _write_adapter_config(stage, base)
    directory.copy_all_but_weights(merged.directory, stage.local, settings.dtype)
    directory.complete(stage.local)
    distances.write_summary(labels, settings.space, merged.grams, stage.local)
    return _summary(settings, merged), merged


def _write_adapter_config(stage: Stage, base: str) -> None:
    """Write the settings of a merged adapter, whose factors have one rank and the scale 1."""
    layers = {name.removeprefix(adapter.PREFIX).partition(".lora_")[0] for name in stage.tensors}
    rank = next(entry.shape[0] for name, entry in stage.tensors.items() if ".lora_A." in name)
    adapter.write_config(stage.local, Lora(rank=rank, alpha=rank), layers, base)


def _merge_on_ray(
    models: list[str],
    base: str | None,
    settings: Merge,
    target: str,
    grams: dict[str, GramMatrix] | None,
) -> MergeOutput:
    name = f"merge-{uuid.uuid4().hex[:6]}"
    execution, files = settings.execution, [*models, *([base] if base else []), target]
    options = placements(files, execution.num_workers, execution.start_timeout_s)
    coordinator_class: Any = MergeCoordinator.options(  # type: ignore[attr-defined]
        # One thread runs the merge; the others answer reports of workers and the driver meanwhile.
        name=f"{name}-coordinator",
        max_concurrency=4,
        scheduling_strategy=here(),
    )
    worker_class: Any = MergeWorker
    workers = [  # before the coordinator: they import torch, and should get the processes that Ray prestarts
        worker_class.options(name=f"{name}-worker-{number}", **where).remote(f"{name}-worker-{number}")
        for number, where in enumerate(options, 1)
    ]
    coordinator = coordinator_class.remote(f"{name}-coordinator")
    try:
        merged = coordinator.run.remote(models, base, settings, target, workers, coordinator, grams)
        return _await(coordinator, merged, Wait(WORKER, 1, execution.start_timeout_s, REMEDY))
    finally:
        # An error keeps this frame alive, in a notebook until the next one, and its handles keep the CPUs.
        for worker in workers:
            ray.kill(worker)


def readable(uri: str) -> str:
    """A model on the hub is downloaded to this machine; every other URI is read in place."""
    return storage.local_directory(uri) if storage.is_hub(uri) else uri


def _summary(settings: Merge, merged: MergeOutput) -> MergeConfig:
    """Settings for the record, with least, mean and largest coefficient of each model over all tensors."""
    per_tensor = [
        recorded_coefficients(settings, weights_of(merged.weights, name), gram)
        for name, gram in merged.grams.items()
    ]
    found = [coefficients for coefficients in per_tensor if coefficients is not None]
    ranges: list[list[float]] | None = None
    if found:
        stacked = np.stack([np.min(found, axis=0), np.mean(found, axis=0), np.max(found, axis=0)], axis=1)
        ranges = [[float(f"{value:.6g}") for value in values] for values in stacked]
    recorded = {key: getattr(settings, key) for key in RECORDED}
    return MergeConfig(
        **recorded,
        scale_from=None if settings.origin is None else "parent",
        weights=merged.weights,
        coefficients=ranges,
        adapter_error=_adapter_error(merged),
    )


def _adapter_error(merged: MergeOutput) -> float | None:
    """Relative Frobenius error of all layers of a merged adapter, before it is rounded to its dtype."""
    squares = np.array([pair for part in merged.written for pair in part.truncation.values()])
    if not len(squares):
        return None
    norm, error = squares.sum(axis=0)
    return float(np.sqrt(error / norm)) if norm else 0.0


def recorded_coefficients(settings: Merge, weights: list[float], gram: GramMatrix) -> Array | None:
    """The coefficients of one tensor; None if a model has norm zero in it, or the method has none."""
    products = np.array(gram)
    if METHODS[settings.method].coefficients is None or not products.diagonal().all():
        return None
    try:
        return coefficients_of(settings, np.array(weights), products)
    except DirectionsCancel:
        return None


def _await(coordinator: Any, reference: Any, wait: Wait) -> MergeOutput:
    """The coordinator's result; progress is shown until it is available.

    Args:
        wait: Ends the merge if all nodes are lost and none comes: workers that Ray restarts are demand.
    """
    started = time.monotonic()
    with Progress() as progress:
        while not ray.wait([reference], timeout=POLL_SECONDS)[0]:
            wait.goes_on()
            done, total, read = result_of(coordinator.progress.remote())
            if not done:
                started = time.monotonic()
            elif MIB <= done < total:
                rate = (done + read) / 1e9 / (time.monotonic() - started)
                progress.update("merge", done // MIB, total // MIB, f"MiB written, {rate:.2f} GB/s")
        merged: MergeOutput = result_of(reference)
        size = sum(merged.sizes.values())
        rate = (size + merged.bytes_read) / 1e9 / merged.seconds
        note = f"MiB written in {len(merged.shards)} files in {merged.seconds:.2f} s, {rate:.2f} GB/s"
        progress.update("merge", size // MIB, size // MIB, note)
        return merged

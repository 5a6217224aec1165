"""A merge from its driver: starts the actors, shows progress, and publishes the result."""

import os
import time
import uuid
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from boom_ray import artifacts, storage
from boom_ray.artifacts import staging
from boom_ray.artifacts.record import Record
from boom_ray.artifacts.staging import Stage
from boom_ray.artifacts.tensors import INDEX
from boom_ray.errors import BoomError
from boom_ray.merge import distances
from boom_ray.merge.actors import MergeCoordinator, Merged, MergeSpec, MergeWorker
from boom_ray.merge.job import Products
from boom_ray.merge.methods import METHODS, Cancelled
from boom_ray.merge.placement import placements
from boom_ray.merge.plan import index_json
from boom_ray.model import card, directory
from boom_ray.runtime.cluster import here, result_of
from boom_ray.runtime.progress import Progress

POLL_SECONDS = 0.1
MIB = 1 << 20


def merge_models(
    models: list[str],
    target: str,
    base: str | None,
    spec: MergeSpec,
    known: dict[str, Products] | None = None,
    metrics: dict[str, Any] | None = None,
) -> tuple[Record, Merged]:
    """Merge models into one, and publish it.

    Args:
        models: URIs.
        target: URI of the merged model.
        base: URI of the model they were trained from, for differences to it.
        known: Gram matrices of an earlier merge of the same models in the same space.
        metrics: What the record says was measured.

    Returns:
        The record, and what was written.

    Raises:
        BoomError: listing why they cannot be merged; nothing is left at `target`.
    """
    with staging.staged(target) as stage:
        config, merged = merge_into(stage, models, base, spec, known)
        parents = [directory.identify(uri) for uri in models]
        record = Record(
            kind="model",
            name=storage.name_of(target),
            version=storage.name_of(target),
            fingerprint=artifacts.fingerprint([[parent.digest for parent in parents], config]),
            config=config,
            parents=parents,
            metrics=metrics or {},
        )
        card.write(stage.local, record, directory.license_of(models[0]))
        return stage.commit(record), merged


def merge_into(
    stage: Stage,
    models: list[str],
    base: str | None,
    spec: MergeSpec,
    known: dict[str, Products] | None = None,
) -> tuple[dict[str, Any], Merged]:
    """Fill a stage with everything of a merged model but its card and record.

    Args:
        models: URIs of M models of one architecture.
        base: URI of the model they were trained from; needed when differences to it are merged.
        known: Gram matrices of an earlier merge of the same models.

    Returns:
        What the record says of the merge, and what was written.

    Raises:
        BoomError: listing why the models cannot be merged.
    """
    check_spec(spec, len(models), base)
    labels = [storage.name_of(model) for model in models]
    models, base = [_reachable(model) for model in models], _reachable(base) if base else None
    name = f"merge-{uuid.uuid4().hex[:6]}"
    options = placements([*models, *([base] if base else []), stage.uri], spec.num_workers)
    coordinator_class: Any = MergeCoordinator.options(  # type: ignore[attr-defined]
        name=f"{name}-coordinator", max_concurrency=4, scheduling_strategy=here()
    )
    worker_class: Any = MergeWorker
    workers = [  # they take longest to start, so they get the processes that Ray has waiting
        worker_class.options(name=f"{name}-worker-{number}", **where).remote(f"{name}-worker-{number}")
        for number, where in enumerate(options, 1)
    ]
    coordinator = coordinator_class.remote(f"{name}-coordinator")
    run = coordinator.run.remote(models, base, spec, stage.uri, workers, coordinator, known)
    merged = _await(coordinator, run)
    for part in merged.written:
        stage.entries[part.name] = part.file
        stage.tensors |= part.tensors
    if len(merged.shards) > 1:
        with open(os.path.join(stage.local, INDEX), "w", encoding="utf-8") as file:
            file.write(index_json(merged.shards, merged.sizes))
    directory.copy_all_but_weights(merged.directory, stage.local, spec.dtype)
    distances.write_summary(labels, spec.space, merged.products, stage.local)
    return _summary(spec, merged), merged


def _reachable(uri: str) -> str:
    """A model of the hub is fetched to this machine; everything else is read where it lies."""
    return storage.local_directory(uri) if storage.is_hub(uri) else uri


def check_spec(spec: MergeSpec, num_models: int, base: str | None) -> None:
    """Refuse what no models could make a merge of.

    Raises:
        BoomError: saying what, and what is allowed.
    """
    if spec.method not in METHODS:
        raise BoomError(f"no merge method {spec.method!r}; allowed: {', '.join(METHODS)}")
    method = METHODS[spec.method]
    least, most = method.num_models
    if not least <= num_models <= most:
        raise BoomError(f"{spec.method} merges {least} models; got {num_models}. Use multislerp for more")
    if spec.space == "deltas" and base is None:
        raise BoomError("merging differences needs the base model. Give it, or merge in weight space")
    if spec.space == "weights" and method.needs_base:
        raise BoomError(f"{spec.method} merges differences to a base model. Give the base model")
    if not method.takes_weights and spec.weights != "equal":
        raise BoomError(f"{spec.method} finds its own weights; got {spec.weights}. Leave them out")
    if not all(0 < density <= 1 for density in spec.options.densities(num_models)):
        raise BoomError(f"density {spec.options.density}; allowed: above 0, at most 1")


def _summary(spec: MergeSpec, merged: Merged) -> dict[str, Any]:
    """What the record says of a merge: how, and over all tensors the range of each model's coefficient."""
    found = [
        coefficients
        for products in merged.products.values()
        if (coefficients := coefficients_of(spec, merged.weights, products)) is not None
    ]
    summary = {
        "method": spec.method,
        "space": spec.space,
        "weights": merged.weights,
        "dtype": spec.dtype,
        **asdict(spec.options),
    }
    if found:
        ranges = np.stack([np.min(found, axis=0), np.mean(found, axis=0), np.max(found, axis=0)], axis=1)
        summary["coefficients"] = [[float(f"{value:.6g}") for value in values] for values in ranges]
    return summary


def coefficients_of(spec: MergeSpec, weights: list[float], products: Products) -> NDArray[np.float64] | None:
    """The coefficients of one tensor, or None where there are none: equal in all models, or by element."""
    method = METHODS[spec.method].coefficients
    gram = np.array(products)
    if method is None or not gram.diagonal().all():
        return None
    try:
        return method(gram, np.array(weights), spec.options)
    except Cancelled:
        return None


def _await(coordinator: Any, reference: Any) -> Merged:
    """The coordinator's result, with progress on the way."""
    started = time.monotonic()
    with Progress() as progress:
        while not ray.wait([reference], timeout=POLL_SECONDS)[0]:
            done, total, read = result_of(coordinator.progress.remote())
            if not done:
                started = time.monotonic()
            elif MIB <= done < total:
                rate = (done + read) / 1e9 / (time.monotonic() - started)
                progress.update("merge", done // MIB, total // MIB, f"MiB written, {rate:.2f} GB/s")
        merged: Merged = result_of(reference)
        size = sum(merged.sizes.values())
        rate = (size + merged.bytes_read) / 1e9 / merged.seconds
        note = f"MiB written in {len(merged.shards)} files in {merged.seconds:.2f} s, {rate:.2f} GB/s"
        progress.update("merge", size // MIB, size // MIB, note)
        return merged

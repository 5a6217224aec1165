"""Distances between the models of a merge: angles and norms, from the Gram matrices of the merge itself."""

import json
import math
import os
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boom_ray import storage
from boom_ray.artifacts.record import DISTANCES
from boom_ray.merge.layer_groups import layer_of
from boom_ray.merge.merge_job import GramMatrix


def distances(labels: list[str], space: str, grams: dict[str, GramMatrix]) -> dict[str, Any]:
    """Norms of the models and angles between them, per tensor, per layer, and over the whole model.

    Args:
        labels: Names of the models.
        space: `deltas` or `weights`: whether norms and angles are those of task vectors or of weights.
        grams: Gram matrix of every tensor; that of a layer is their sum.

    Returns:
        `models`, `space`, and under `tensors`, `layers` and `all` the `norms`, [M], and `angles` in degrees,
        [M, M], None where an input of norm zero has no direction.
    """
    arrays = {name: np.array(values) for name, values in grams.items()}
    layers: dict[str, NDArray[np.float64]] = {}
    for name, gram in arrays.items():
        layers[_layer(name)] = layers.get(_layer(name), np.zeros_like(gram)) + gram
    return {
        "models": labels,
        "space": space,
        "all": _entry(np.sum(list(arrays.values()), axis=0)),
        "layers": {name: _entry(layers[name]) for name in sorted(layers, key=_in_order)},
        "tensors": {name: _entry(arrays[name]) for name in sorted(arrays, key=_in_order)},
    }


def write_summary(labels: list[str], space: str, grams: dict[str, GramMatrix], directory: str) -> None:
    """Write the distances of layers and of the whole model into a local directory."""
    report = distances(labels, space, grams)
    del report["tensors"]
    with open(os.path.join(directory, DISTANCES), "w", encoding="utf-8") as file:
        json.dump(report, file)


def write(report: dict[str, Any], uri: str) -> str:
    """Write a report as JSON, and as a heat map with the same name.

    Args:
        report: Result of `distances`.
        uri: URI of the JSON file.

    Returns:
        URI of the picture.
    """
    picture = storage.join(storage.parent_of(uri), storage.name_of(uri).removesuffix(".json") + ".png")
    storage.write_bytes(uri, json.dumps(report, indent=1).encode())
    storage.write_bytes(picture, _heat_map(report))
    return picture


def _layer(name: str) -> str:
    layer = layer_of(name)
    return name if layer is None else f"layer {layer}"


def _in_order(name: str) -> list[tuple[int, str]]:
    """A sort key by which layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _entry(gram: NDArray[np.float64]) -> dict[str, Any]:
    norms = np.sqrt(gram.diagonal())
    angles = [
        [_degrees(gram[i, j], norms[i] * norms[j]) if i != j else 0.0 for j in range(len(gram))]
        for i in range(len(gram))
    ]
    return {"norms": norms.tolist(), "angles": angles}


def _degrees(product: float, norms: float) -> float | None:
    return math.degrees(math.acos(min(max(product / norms, -1.0), 1.0))) if norms else None


def _heat_map(report: dict[str, Any]) -> bytes:
    """One row per layer, one column per pair of models, coloured by angle: PNG."""
    import io

    from matplotlib.figure import Figure

    count = len(report["models"])
    pairs = [(i, j) for i in range(count) for j in range(i)]
    layers = list(report["layers"])
    table = [[report["layers"][layer]["angles"][i][j] for i, j in pairs] for layer in layers]
    figure = Figure(figsize=(3 + 0.5 * len(pairs), 2 + 0.22 * len(layers)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.array(table, dtype=float), aspect="auto", vmin=0, cmap="viridis")
    axes.set_xticks(range(len(pairs)), [f"{j + 1}-{i + 1}" for i, j in pairs])
    axes.set_yticks(range(len(layers)), layers, fontsize=7)
    axes.set_xlabel(
        "models " + ", ".join(f"{k}: {label}" for k, label in enumerate(report["models"], 1)), wrap=True
    )
    axes.set_title(f"angles between {'task vectors' if report['space'] == 'deltas' else 'weights'}")
    figure.colorbar(image, label="degrees")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()

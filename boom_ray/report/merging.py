"""How the models were merged, and how far apart they lay: angles, norms and coefficients."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from boom_ray.report.collect import Found
from boom_ray.report.scale import Axis, axis
from boom_ray.runs.versions import labels_of_parents


@dataclass(frozen=True)
class Model:
    """An input of the merge: norm, weight, and least, mean and greatest coefficient over all tensors."""

    label: str
    norm: float
    weight: float
    coefficients: list[float] | None


@dataclass(frozen=True)
class Layer:
    """Least, mean and greatest angle between two models in one layer, in degrees and as positions."""

    name: str
    angles: tuple[float, float, float]
    positions: tuple[float, float, float]


@dataclass(frozen=True)
class Merging:
    """A merge: `angles` are those of the whole models, with a shade from 0 to 100; None on the diagonal."""

    method: str
    space: str
    models: list[Model]
    angles: list[list[tuple[float, int] | None]]
    axis: Axis | None
    layers: list[Layer]


def merging(found: Found) -> Merging | None:
    """The merge that made the version; None if there is none."""
    if found.record is None or found.record.config.merge is None or found.distances is None:
        return None
    merge, whole = found.record.config.merge, found.distances["all"]
    labels = labels_of_parents(found.record)
    pairs = list(itertools.combinations(range(len(labels)), 2))
    measured = [angle for i, j in pairs if (angle := whole["angles"][i][j]) is not None]
    low, height = (min(measured), max(measured) - min(measured)) if measured else (0.0, 0.0)

    def cell(i: int, j: int) -> tuple[float, int] | None:
        angle = whole["angles"][i][j]
        if i == j or angle is None:
            return None
        return angle, round(100 * (angle - low) / height) if height else 50

    layers = {
        name: [angle for i, j in pairs if (angle := entry["angles"][i][j]) is not None]
        for name, entry in found.distances["layers"].items()
    }
    layers = {name: angles for name, angles in layers.items() if angles}
    across = axis([0.0, *itertools.chain(*layers.values())]) if layers else None
    coefficients: Sequence[list[float] | None] = merge.coefficients or [None] * len(labels)
    return Merging(
        method=merge.method,
        space=merge.space,
        models=[
            Model(*facts) for facts in zip(labels, whole["norms"], merge.weights, coefficients, strict=True)
        ],
        angles=[[cell(i, j) for j in range(len(labels))] for i in range(len(labels))],
        axis=across,
        layers=[_layer(name, angles, across) for name, angles in layers.items() if across],
    )


def _layer(name: str, angles: list[float], across: Axis) -> Layer:
    three = min(angles), sum(angles) / len(angles), max(angles)
    return Layer(name, three, (across.at(three[0]), across.at(three[1]), across.at(three[2])))

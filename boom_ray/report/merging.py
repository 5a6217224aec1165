"""The merge: method, norms, weights and coefficients of its inputs, and the angles between them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from boom_ray.report.collect import RunContents
from boom_ray.report.scale import Axis, axis
from boom_ray.runs.versions import labels_of_parents


@dataclass(frozen=True)
class MergedModel:
    """A merged model: norm, weight, and smallest, mean and largest coefficient over all tensors.

    The weight is the mean over groups of layers, if they have weights of their own.
    """

    label: str
    norm: float
    weight: float
    coefficients: list[float] | None


@dataclass(frozen=True)
class LayerAngles:
    """Smallest, mean and largest angle in one layer: in degrees, and as positions in percent of the axis."""

    name: str
    angles: tuple[float, float, float]
    positions: tuple[float, float, float]


@dataclass(frozen=True)
class Merging:
    """A merge.

    Attributes:
        angles: [M, M] of the whole models in degrees, each with a shade from 0 to 100; None on the diagonal.
        axis: That of `layers`.
    """

    method: str
    scale: float
    space: str
    models: list[MergedModel]
    angles: list[list[tuple[float, int] | None]]
    axis: Axis | None
    layers: list[LayerAngles]


def merging(found: RunContents) -> Merging | None:
    """The merge that made the version; None if there is none."""
    if found.record is None or found.record.config.merge is None or found.distances is None:
        return None
    merge, whole = found.record.config.merge, found.distances.all
    labels = labels_of_parents(found.record)
    pairs = list(itertools.combinations(range(len(labels)), 2))
    layers = {
        name: [angle for i, j in pairs if (angle := entry.angles[i][j]) is not None]
        for name, entry in found.distances.layers.items()
    }
    layers = {name: angles for name, angles in layers.items() if angles}
    across = axis([0.0, *itertools.chain(*layers.values())]) if layers else None
    coefficients: Sequence[list[float] | None] = merge.coefficients or [None] * len(labels)
    by_group = merge.weights.values() if isinstance(merge.weights, dict) else [merge.weights]
    weights = [sum(values) / len(values) for values in zip(*by_group, strict=True)]
    return Merging(
        method=merge.method,
        scale=merge.scale,
        space=merge.space,
        models=[
            MergedModel(*facts) for facts in zip(labels, whole.norms, weights, coefficients, strict=True)
        ],
        angles=_shaded(whole.angles),
        axis=across,
        layers=[_layer(name, angles, across) for name, angles in layers.items() if across],
    )


def _shaded(angles: list[list[float | None]]) -> list[list[tuple[float, int] | None]]:
    """Angles with shades: 0 for the smallest between two models, 100 for the largest."""
    number = len(angles)
    pairs = itertools.combinations(range(number), 2)
    measured = [angle for i, j in pairs if (angle := angles[i][j]) is not None]
    low, spread = (min(measured), max(measured) - min(measured)) if measured else (0.0, 0.0)

    def cell(i: int, j: int) -> tuple[float, int] | None:
        angle = angles[i][j]
        if i == j or angle is None:
            return None
        return angle, round(100 * (angle - low) / spread) if spread else 50

    return [[cell(i, j) for j in range(number)] for i in range(number)]


def _layer(name: str, angles: list[float], across: Axis) -> LayerAngles:
    three = min(angles), sum(angles) / len(angles), max(angles)
    return LayerAngles(name, three, (across.at(three[0]), across.at(three[1]), across.at(three[2])))

"""The coefficients that a method gives, from Gram matrices alone: of tensors, or of groups of layers."""

from collections.abc import Mapping, Sequence

import numpy as np

from boom_ray.errors import InputError
from boom_ray.merge.inputs import MergeInput
from boom_ray.merge.layer_groups import default_groups, groups_of_tensors, weights_of
from boom_ray.merge.merge_job import GramMatrix
from boom_ray.merge.methods import DirectionsCancel, coefficients_of
from boom_ray.merge.settings import resolve_weights
from boom_ray.recipe import Merge


def method_coefficients(
    settings: Merge, models: Sequence[MergeInput], grams: Mapping[str, GramMatrix]
) -> dict[str, list[float]]:
    """One coefficient per model for each Gram matrix.

    Args:
        settings: Of a method with coefficients.
        models: The M models.
        grams: [M, M], by tensor; or by group of layers (`group_grams`), if the weights are the same for all.

    Raises:
        InputError: if directions cancel, or there are not M weights.
    """
    weights = resolve_weights(list(models), settings)
    return {
        name: _coefficients(settings, weights_of(weights, name), name, products)
        for name, products in grams.items()
    }


def _coefficients(settings: Merge, weights: list[float], name: str, products: GramMatrix) -> list[float]:
    try:
        return [float(value) for value in coefficients_of(settings, np.array(weights), np.array(products))]
    except DirectionsCancel:
        raise InputError(
            f"{name}: the models point in opposite directions that cancel. Use other "
            "weights, or method linear"
        ) from None


def group_grams(grams: Mapping[str, GramMatrix]) -> dict[str, GramMatrix]:
    """The Gram matrix of each group of layers as one vector, from those of its tensors."""
    groups = groups_of_tensors(grams)
    return {
        group: np.sum([grams[name] for name in grams if groups[name] == group], axis=0).tolist()
        for group in default_groups(grams)
    }

"""Merge settings against the models they are for."""

import math
from typing import Any

from pydantic import ValidationError

from boom_ray.errors import InputError
from boom_ray.merge.inputs import MergeInput
from boom_ray.merge.layer_groups import Weights, check_groups
from boom_ray.merge.methods import METHODS
from boom_ray.recipe import Merge
from boom_ray.recipe.reading import explain


def merge_settings(**values: Any) -> Merge:
    """Merge settings from arguments.

    Args:
        values: Attributes of `boom_ray.recipe.Merge`.

    Raises:
        InputError: listing every value that is not allowed.
    """
    try:
        return Merge.model_validate(values)
    except ValidationError as error:
        raise InputError.of(explain(error, Merge), "not valid merge settings:") from None


def check_settings(settings: Merge, num_models: int, base: str | None) -> None:
    """Check settings against the number of models and the base model.

    Raises:
        InputError: naming the setting and what is allowed.
    """
    name = settings.method
    if name not in METHODS:  # `model_copy` does not validate
        raise InputError(f"no merge method {name!r}; allowed: {', '.join(METHODS)}")
    method = METHODS[name]
    least, most = method.num_models
    if not least <= num_models <= most:
        raise InputError(f"{name} merges {least} models; got {num_models}. Use multislerp for more")
    if settings.space == "deltas" and base is None:
        raise InputError("space deltas needs the base model. Give base_model, or use space weights")
    if settings.space == "weights" and method.needs_base:
        raise InputError(f"{name} merges task vectors. Give base_model, and use space deltas")
    if not method.takes_weights and settings.weights != "equal":
        raise InputError(f"{name} computes its own weights; got {settings.weights}. Use weights equal")
    if settings.adapter_rank and settings.space == "weights":
        raise InputError(
            "adapter_rank needs the base model of the adapters. Give base_model, and space deltas"
        )
    if settings.adapter_rank and method.coefficients is None:
        raise InputError(f"{name} decides by element; its result has no bounded rank. Leave adapter_rank out")
    num_densities = len(settings.densities(num_models))
    if num_densities != num_models:
        raise InputError(
            f"got {num_densities} densities for {num_models} models; give one number, or one each"
        )


def resolve_weights(inputs: list[MergeInput], settings: Merge) -> Weights:
    """One weight per model, or by group of layers; with sum 1 if the settings, or the method, normalize.

    Raises:
        InputError: if the number of weights is wrong, their sum is zero, a model has no recorded rows, or
            groups do not divide the tensors.
    """
    if not isinstance(settings.weights, dict):
        return _resolved(inputs, settings)
    check_groups(settings.weights, inputs[0].places)
    leaves_base = settings.space == "deltas"  # a group without a weight is that of the base model
    return {
        group: _resolved(inputs, settings.model_copy(update={"weights": weights}), may_be_zero=leaves_base)
        for group, weights in settings.weights.items()
    }


def _resolved(inputs: list[MergeInput], settings: Merge, may_be_zero: bool = False) -> list[float]:
    assert not isinstance(settings.weights, dict)
    count = len(inputs)
    if settings.weights == "equal":
        values = [1.0] * count
    elif settings.weights == "size":
        rows = [_rows(model) for model in inputs]
        values = [count * value / math.fsum(rows) for value in rows]
    else:
        values = [float(weight) for weight in settings.weights]
    if len(values) != count:
        raise InputError(f"got {len(values)} weights for {count} models; give one per model")
    method = METHODS[settings.method]
    total, size = math.fsum(values), math.fsum(abs(value) for value in values)
    if not math.isfinite(size) or not (size or may_be_zero):
        raise InputError(f"the weights {values} sum to {total:g}; give weights with another sum")
    normalize = method.normalizes if settings.normalize is None else settings.normalize
    if not normalize or method.divides_by_weights:
        return values
    if abs(total) <= 1e-12 * size:
        raise InputError(f"the weights {values} sum to {total:g}; give weights with another sum")
    return [value / total for value in values]


def _rows(model: MergeInput) -> float:
    if model.record is None or model.record.config.rows is None:
        raise InputError(
            f"{model.uri}: weights by size need the number of rows in its record, which has none. "
            "Give one weight per model"
        )
    return float(model.record.config.rows)

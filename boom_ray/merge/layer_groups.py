"""Groups of layers that weights can differ by: `embeddings`, ranges of layers (`layers 0-3`), and `rest`."""

import math
import re
from collections.abc import Iterable

from boom_ray.errors import InputError

LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
EMBEDDING = re.compile(r"(?:^|\.)(?:\w*embed\w*|wte|wpe|shared)\.")
EMBEDDINGS, REST = "embeddings", "rest"
RANGE = re.compile(r"layers (\d+)-(\d+)")
MOST_RANGES = 6  # of layers, by default: with five models, groups have a few dozen coefficients in all

#: One weight per model, or those of each group of layers.
Weights = list[float] | dict[str, list[float]]


def layer_of(tensor: str) -> int | None:
    """The layer that a tensor belongs to; None if to none."""
    found = LAYER.search(tensor)
    return int(found[1]) if found else None


def group_of(tensor: str, groups: Iterable[str]) -> str | None:
    """The first of some groups that a tensor belongs to, if there is one."""
    layer = layer_of(tensor)
    if layer is None:
        own = EMBEDDINGS if EMBEDDING.search(tensor) else REST
        return own if own in groups else None
    ranges = ((group, RANGE.fullmatch(group)) for group in groups)
    return next((group for group, ends in ranges if ends and int(ends[1]) <= layer <= int(ends[2])), None)


def default_groups(tensors: Iterable[str]) -> list[str]:
    """Embeddings, at most `MOST_RANGES` ranges of about as many layers each, and the rest, as they occur."""
    tensors = list(tensors)
    num_layers = 1 + max((layer for name in tensors if (layer := layer_of(name)) is not None), default=-1)
    size = max(1, math.ceil(num_layers / MOST_RANGES))
    ranges = [f"layers {first}-{min(first + size, num_layers) - 1}" for first in range(0, num_layers, size)]
    candidates = [EMBEDDINGS, *ranges, REST]
    present = {group_of(name, candidates) for name in tensors}
    return [group for group in candidates if group in present]


def groups_of_tensors(tensors: Iterable[str]) -> dict[str, str]:
    """The default group of each tensor."""
    tensors = list(tensors)
    groups = default_groups(tensors)
    return {name: group for name in tensors if (group := group_of(name, groups)) is not None}


def weights_of(weights: Weights, tensor: str) -> list[float]:
    """One weight per model for a tensor."""
    if isinstance(weights, list):
        return weights
    group = group_of(tensor, weights)
    assert group is not None, f"{tensor} is in none of {list(weights)}"
    return weights[group]


def check_groups(groups: Iterable[str], tensors: Iterable[str]) -> None:
    """Check that groups divide the tensors of a model.

    Raises:
        InputError: if a tensor is in no group, or a group has no tensor.
    """
    groups, tensors = list(groups), list(tensors)
    found = {name: group_of(name, groups) for name in tensors}
    allowed = f"such as {', '.join(map(repr, default_groups(tensors)))}"
    if missing := [name for name, group in found.items() if group is None]:
        raise InputError(
            f"weights: {missing[0]} is in none of the groups {', '.join(groups)}; give groups of all layers, "
            f"{allowed}"
        )
    if empty := [group for group in groups if group not in found.values()]:
        raise InputError(f"weights: no tensor is in the group {empty[0]!r}; allowed: {allowed}")

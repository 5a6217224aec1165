"""Which tensor goes into which output file, and which tensors are cut over workers."""

import json
import math
from dataclasses import dataclass

MIN_SHARD_BYTES = 64 << 20
UNFAIR = 1.25  # times a worker's share, from which on a tensor is cut


@dataclass(frozen=True)
class Shard:
    """One output file.

    Attributes:
        file: Its name.
        tensors: The names of its tensors, in order.
        num_slices: Into how many parts its one tensor is cut, each for another worker; 1 if none is.
    """

    file: str
    tensors: list[str]
    num_slices: int = 1


def plan_shards(
    sizes: dict[str, int], num_workers: int, max_shard_bytes: int, can_cut: bool = True
) -> list[Shard]:
    """Spread tensors over files of about the same size, so that workers end together.

    There are as many files as workers, or more to keep each below `max_shard_bytes`, or fewer to keep each
    above 64 MiB. The largest tensor goes first, into the file that is smallest so far. A tensor larger than a
    worker's fair share has a file of its own, which several workers fill.

    Args:
        sizes: Bytes of each output tensor.
        num_workers: Workers that write files.
        max_shard_bytes: Upper limit of a file, but for a tensor that is larger by itself.
        can_cut: Whether tensors may be cut at all.

    Returns:
        The files, named as `transformers` looks for them; those that are cut come first.
    """
    share = sum(sizes.values()) / num_workers
    cut = {
        name: math.ceil(size / share)
        for name, size in sorted(sizes.items())
        if can_cut and size > max(UNFAIR * share, MIN_SHARD_BYTES)
    }
    whole = {name: size for name, size in sizes.items() if name not in cut}
    chosen = [[name] for name in cut]
    chosen += _fill(whole, num_workers, max_shard_bytes) if whole or not cut else []
    if len(chosen) == 1:
        return [Shard("model.safetensors", chosen[0], cut.get(next(iter(sizes), ""), 1))]
    files = [f"model-{number:05d}-of-{len(chosen):05d}.safetensors" for number in range(1, len(chosen) + 1)]
    return [
        Shard(file, sorted(names), cut.get(names[0], 1)) for file, names in zip(files, chosen, strict=True)
    ]


def slices(num_elements: int, count: int, multiple: int) -> list[tuple[int, int]]:
    """Cut a tensor into `count` ranges (start, length) that begin at a multiple of `multiple` elements."""
    step = max(math.ceil(num_elements / count / multiple), 1) * multiple
    return [(start, min(step, num_elements - start)) for start in range(0, num_elements, step)]


def _fill(sizes: dict[str, int], num_workers: int, max_shard_bytes: int) -> list[list[str]]:
    total = sum(sizes.values())
    count = max(math.ceil(total / max_shard_bytes), min(num_workers, total // MIN_SHARD_BYTES), 1)
    count = min(count, max(1, len(sizes)))
    chosen = _balanced(sizes, count)
    while any(len(names) > 1 and sum(sizes[name] for name in names) > max_shard_bytes for names in chosen):
        count += 1
        chosen = _balanced(sizes, count)
    return chosen


def _balanced(sizes: dict[str, int], count: int) -> list[list[str]]:
    filled = [0] * count
    chosen: list[list[str]] = [[] for _ in range(count)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        lightest = min(range(count), key=lambda index: (filled[index], len(chosen[index])))
        filled[lightest] += sizes[name]
        chosen[lightest].append(name)
    return [sorted(names) for names in chosen]


def index_json(shards: list[Shard], sizes: dict[str, int]) -> str:
    """The content of `model.safetensors.index.json`."""
    weight_map = {tensor: shard.file for shard in shards for tensor in shard.tensors}
    total = sum(sizes.values())
    return json.dumps(
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2
    )

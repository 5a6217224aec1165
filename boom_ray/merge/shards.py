"""The assignment of tensors to output files, and of large tensors to several workers."""

import json
import math
from dataclasses import dataclass

MIN_SHARD_BYTES = 64 << 20
#: A tensor is cut if it is this many times larger than a worker's fair share. Cutting has a cost: the
#: complete file is read again for its hashes, and an input with a record once more to be verified.
MIN_EXCESS = 1.25


@dataclass(frozen=True)
class Shard:
    """One output file.

    Attributes:
        file: File name.
        tensors: Names of its tensors, in order.
        num_slices: Number of slices of its one tensor, each written by another worker; 1 if it is not cut.
    """

    file: str
    tensors: list[str]
    num_slices: int = 1


def plan_shards(
    sizes: dict[str, int], num_workers: int, max_shard_bytes: int, can_cut: bool = True
) -> list[Shard]:
    """Distribute tensors over files of similar size, so that workers finish together.

    There are as many files as workers, or more to keep each below `max_shard_bytes`, or fewer to keep each
    above 64 MiB. Tensors are assigned by decreasing size, each to the smallest file so far. A tensor larger
    than a worker's fair share gets its own file, which several workers write.

    Args:
        sizes: Bytes of each output tensor.
        num_workers: Number of workers.
        max_shard_bytes: Size limit of a file; a single tensor may exceed it.
        can_cut: Whether tensors may be cut.

    Returns:
        The files, named as `transformers` expects them; files of cut tensors come first.
    """
    share = sum(sizes.values()) / num_workers
    cut = {
        name: math.ceil(size / share)
        for name, size in sorted(sizes.items())
        if can_cut and size > max(MIN_EXCESS * share, MIN_SHARD_BYTES)
    }
    whole = {name: size for name, size in sizes.items() if name not in cut}
    groups = [[name] for name in cut]
    groups += _distribute(whole, num_workers, max_shard_bytes) if whole or not cut else []
    if len(groups) == 1:
        return [Shard("model.safetensors", groups[0], cut.get(next(iter(sizes), ""), 1))]
    files = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    return [
        Shard(file, sorted(names), cut.get(names[0], 1)) for file, names in zip(files, groups, strict=True)
    ]


def slices(num_elements: int, count: int, multiple: int) -> list[tuple[int, int]]:
    """Cut a tensor into `count` ranges (start, length) that begin at a multiple of `multiple` elements."""
    step = max(math.ceil(num_elements / count / multiple), 1) * multiple
    return [(start, min(step, num_elements - start)) for start in range(0, num_elements, step)]


def _distribute(sizes: dict[str, int], num_workers: int, max_shard_bytes: int) -> list[list[str]]:
    total = sum(sizes.values())
    count = max(math.ceil(total / max_shard_bytes), min(num_workers, total // MIN_SHARD_BYTES), 1)
    count = min(count, max(1, len(sizes)))
    groups = _balanced(sizes, count)
    while any(len(names) > 1 and sum(sizes[name] for name in names) > max_shard_bytes for names in groups):
        count += 1
        groups = _balanced(sizes, count)
    return groups


def _balanced(sizes: dict[str, int], count: int) -> list[list[str]]:
    filled = [0] * count
    groups: list[list[str]] = [[] for _ in range(count)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        lightest = min(range(count), key=lambda index: (filled[index], len(groups[index])))
        filled[lightest] += sizes[name]
        groups[lightest].append(name)
    return [sorted(names) for names in groups]


def index_json(shards: list[Shard], sizes: dict[str, int]) -> str:
    """The content of `model.safetensors.index.json`."""
    weight_map = {tensor: shard.file for shard in shards for tensor in shard.tensors}
    total = sum(sizes.values())
    return json.dumps(
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2
    )

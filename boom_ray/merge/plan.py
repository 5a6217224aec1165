"""Which tensor goes into which output file."""

import json
import math
from dataclasses import dataclass

MIN_SHARD_BYTES = 64 << 20


@dataclass(frozen=True)
class Shard:
    """One output file and the names of its tensors, in order."""

    file: str
    tensors: list[str]


def plan_shards(sizes: dict[str, int], num_workers: int, max_shard_bytes: int) -> list[Shard]:
    """Spread tensors over files of about the same size, so that workers end together.

    There are as many files as workers, or more to keep each below `max_shard_bytes`, or fewer to keep each
    above 64 MiB. The largest tensor goes first, into the file that is smallest so far.

    Args:
        sizes: Bytes of each output tensor.
        num_workers: Workers that write files.
        max_shard_bytes: Upper limit of a file, but for a tensor that is larger by itself.

    Returns:
        The files, named as `transformers` looks for them.
    """
    total = sum(sizes.values())
    count = max(math.ceil(total / max_shard_bytes), min(num_workers, total // MIN_SHARD_BYTES), 1)
    count = min(count, max(1, len(sizes)))
    chosen = _balanced(sizes, count)
    while any(len(names) > 1 and sum(sizes[name] for name in names) > max_shard_bytes for names in chosen):
        count += 1
        chosen = _balanced(sizes, count)
    if count == 1:
        return [Shard("model.safetensors", sorted(sizes))]
    files = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    return [Shard(file, sorted(names)) for file, names in zip(files, chosen, strict=True)]


def _balanced(sizes: dict[str, int], count: int) -> list[list[str]]:
    filled = [0] * count
    chosen: list[list[str]] = [[] for _ in range(count)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        lightest = min(range(count), key=lambda index: (filled[index], len(chosen[index])))
        filled[lightest] += sizes[name]
        chosen[lightest].append(name)
    return chosen


def index_json(shards: list[Shard], sizes: dict[str, int]) -> str:
    """The content of `model.safetensors.index.json`."""
    weight_map = {tensor: shard.file for shard in shards for tensor in shard.tensors}
    total = sum(sizes.values())
    return json.dumps(
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2
    )

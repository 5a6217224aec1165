"""A tensor too large for one worker: partial Gram matrices, and slices written to their place in one file."""

from typing import Any, cast

import torch
import xxhash

from boom_ray import artifacts, storage
from boom_ray.artifacts.record import TensorEntry
from boom_ray.artifacts.tensors import ELEMENT_BYTES, header
from boom_ray.merge.feed import Piece, piece_bytes, read_ahead
from boom_ray.merge.job import Job, Products, Written
from boom_ray.merge.plan import Shard
from boom_ray.merge.stream import TensorMerger


def partial_gram(job: Job, name: str, start: int, count: int) -> tuple[Products, bool]:
    """The Gram matrix of a slice, and whether all models are equal in it."""
    with TensorMerger(job) as merger:
        return merger.part_of_gram(name, start, count)


def fill(job: Job, shard: Shard, start: int, count: int, equal: bool) -> None:
    """Write one slice to its place.

    Args:
        job: With the Gram matrix of the whole tensor in `products`.
        equal: Whether the tensor is equal in all models, and is copied.
    """
    (name,) = shard.tensors
    _, offsets = header(job.declared([name]))
    place = offsets[name] + start * ELEMENT_BYTES[job.dtype_of(name)]
    path = storage.join(job.target, shard.file)
    with TensorMerger(job) as merger, storage.explained(path), open(path, "r+b") as file:
        file.seek(place)
        for piece in merger.part(name, start, count, equal):
            file.write(memoryview(cast(Any, piece.contiguous().view(torch.uint8).numpy())))


def seal(job: Job, shard: Shard, equal: set[str]) -> Written:
    """The entries of a file whose slices are all there, from what was written."""
    entry = artifacts.hash_file(storage.join(job.target, shard.file))
    tensors: dict[str, TensorEntry] = artifacts.hash_tensors(job.target, shard.file)
    products = {name: job.products[name] for name in shard.tensors}
    return Written(shard.file, entry, tensors, products, equal)


def check_recorded(job: Job, index: int, name: str) -> None:
    """Compare one model's tensor with its record: slices alone cannot.

    Raises:
        BoomError: if it is damaged.
    """
    with TensorMerger(job) as merger:
        reader = merger.readers[index]
        own = xxhash.xxh3_128()
        step = merger.chunk
        total = reader.source.places[name].num_elements
        pieces = (Piece(name, start, min(step, total - start)) for start in range(0, total, step))
        for _, found in read_ahead(pieces, [reader], 3 * piece_bytes([reader], name, step)):
            own.update(memoryview(cast(Any, found[0].view(torch.uint8).numpy())))
        merger.refuse_damaged(name, index, own)

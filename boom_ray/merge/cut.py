"""A tensor that is too large for one worker: partial Gram matrices, and slices written into one file.

The Gram matrix of a tensor is the sum of the Gram matrices of its slices. So workers accumulate one each, the
coordinator adds them, and the workers combine and write their slices at their offsets.
"""

from typing import Any, cast

import torch
import xxhash

from boom_ray import artifacts, storage
from boom_ray.artifacts.record import TensorEntry
from boom_ray.artifacts.tensors import ELEMENT_BYTES, header
from boom_ray.merge.merge_job import GramMatrix, MergeJob, WrittenShard
from boom_ray.merge.read_ahead import Piece, piece_bytes, read_ahead
from boom_ray.merge.shards import Shard
from boom_ray.merge.stream import PIECES_AT_A_TIME, TensorMerger


def partial_gram(job: MergeJob, name: str, start: int, count: int) -> tuple[GramMatrix, bool]:
    """The Gram matrix of a slice, and whether it is copied because all models are equal in it."""
    with TensorMerger(job) as merger:
        return merger.partial_gram(name, start, count)


def write_slice(job: MergeJob, shard: Shard, start: int, count: int, equal: bool) -> None:
    """Write one slice at its offset in the file.

    Args:
        job: With the Gram matrix of the whole tensor in `grams`.
        equal: Whether the tensor is equal in all models, and is copied.
    """
    (name,) = shard.tensors
    _, offsets = header(job.declared([name]))
    offset = offsets[name] + start * ELEMENT_BYTES[job.dtype_of(name)]
    path = storage.join(job.target, shard.file)
    with TensorMerger(job) as merger, storage.explained(path), open(path, "r+b") as file:
        file.seek(offset)
        for piece in merger.merged_slice(name, start, count, equal):
            file.write(memoryview(cast(Any, piece.contiguous().view(torch.uint8).numpy())))


def finish_file(job: MergeJob, shard: Shard, equal: set[str]) -> WrittenShard:
    """The entries of a file, once all of its slices are written. It is read again: a hash is sequential."""
    entry = artifacts.hash_file(storage.join(job.target, shard.file))
    tensors: dict[str, TensorEntry] = artifacts.hash_tensors(job.target, shard.file)
    grams = {name: job.grams[name] for name in shard.tensors}
    return WrittenShard(shard.file, entry, tensors, grams, equal)


def check_recorded(job: MergeJob, index: int, name: str) -> None:
    """Compare one model's whole tensor with its record, which has no hashes of slices.

    Raises:
        StorageError: if it is damaged.
    """
    with TensorMerger(job) as merger:
        reader, computed = merger.readers[index], xxhash.xxh3_128()
        step, total = merger.chunk, job.num_elements(name)
        order = (Piece(name, start, min(step, total - start)) for start in range(0, total, step))
        memory = PIECES_AT_A_TIME * piece_bytes([reader], name, step)
        for _, pieces in read_ahead(order, [reader], memory):
            computed.update(memoryview(cast(Any, pieces[0].view(torch.uint8).numpy())))
        merger.refuse_damaged(name, index, computed)

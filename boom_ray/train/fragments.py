"""Fragments of the training state in memory: copied to the host to be stored, and filled from files."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from boom_ray.artifacts.fragments import FragmentReader, stored_name
from boom_ray.artifacts.tensors import header
from boom_ray.errors import StorageError

READ_ELEMENTS = 8 << 20  # of one request: 32 MiB
NUM_READS = 16  # requests at the same time
WRITTEN_BYTES = 8 << 20


class Fragment(NamedTuple):
    """A range of a tensor of the training state, flattened.

    Attributes:
        tensor: Name of the tensor.
        size: Number of its elements.
        start: Its first element in the range.
        values: [count] float32, memory of the optimizer itself.
    """

    tensor: str
    size: int
    start: int
    values: Tensor


class Snapshot:
    """A copy of fragments in host memory: the content of a safetensors file, in pieces.

    From a GPU it is copied into pinned memory while the caller goes on. What the caller changes later, on the
    same stream, is not in the copy.

    Args:
        fragments: At least one.
    """

    def __init__(self, fragments: Sequence[Fragment]) -> None:
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {
            stored_name(one.tensor, one.start): ("F32", (one.values.numel(),)) for one in fragments
        }
        self._header, _ = header(tensors)
        counts = [fragment.values.numel() for fragment in fragments]
        on_gpu = any(fragment.values.is_cuda for fragment in fragments)
        self._copy = torch.empty(sum(counts), dtype=torch.float32, pin_memory=on_gpu)
        for target, fragment in zip(self._copy.split(counts), fragments, strict=True):
            target.copy_(fragment.values, non_blocking=True)
        self._copied = torch.cuda.current_stream().record_event() if on_gpu else None

    def __iter__(self) -> Iterator[bytes | memoryview]:
        if self._copied is not None:
            self._copied.synchronize()
        yield self._header
        content = self._copy.numpy().data.cast("B")
        for start in range(0, len(content), WRITTEN_BYTES):
            yield content[start : start + WRITTEN_BYTES]


def fill(fragments: Sequence[Fragment], reader: FragmentReader) -> None:
    """Read the values of fragments, whatever the fragments were that were stored.

    Raises:
        StorageError: if a tensor is not stored, or has another size.
    """
    problems = [
        f"{one.tensor}: {reader.sizes.get(one.tensor, 0)} elements, in the model {one.size}"
        for one in fragments
        if reader.sizes.get(one.tensor) != one.size
    ]
    if problems:
        raise StorageError.of(problems, "the checkpoint has other tensors than the model. Delete it:")
    pieces = list(_pieces(fragments))
    with ThreadPoolExecutor(NUM_READS) as threads:
        # Not all at once: what is read would fill the memory before it is copied.
        for first in range(0, len(pieces), NUM_READS):
            some = pieces[first : first + NUM_READS]
            read = threads.map(lambda one: reader.read(one.tensor, one.start, one.values.numel()), some)
            for piece, values in zip(some, read, strict=True):
                piece.values.copy_(torch.from_numpy(values))


def _pieces(fragments: Sequence[Fragment]) -> Iterator[Fragment]:
    for one in fragments:
        for start in range(0, one.values.numel(), READ_ELEMENTS):
            values = one.values[start : start + READ_ELEMENTS]
            yield one._replace(start=one.start + start, values=values)

"""Reading ahead: pieces of all models, in the order they are needed, within a budget of bytes."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from boom_ray.artifacts.tensors import TensorPlace
from boom_ray.merge.gram import Pieces
from boom_ray.merge.tensor_reader import TensorReader

THREADS = 8  # reads at once; a model takes part with one
ALIGNMENT = 64  # bytes; a cache line, and a multiple of every element size


@dataclass(frozen=True)
class Piece:
    """A range of elements of one tensor."""

    name: str
    start: int
    count: int


class RingBuffer:
    """Memory that is allocated once and taken in turns.

    A large allocation comes from the kernel as fresh pages, which it must clear first. Reusing pages avoids
    one pass over memory per piece.

    Args:
        num_bytes: Capacity.
    """

    def __init__(self, num_bytes: int) -> None:
        self._memory = torch.empty(num_bytes, dtype=torch.uint8)
        self._taken: deque[tuple[int, int]] = deque()  # (start, bytes), oldest first

    def take(self, num_bytes: int) -> Tensor | None:
        """[num_bytes] uint8, or None until enough memory is given back."""
        first = self._taken[0][0] if self._taken else 0
        start = -(-sum(self._taken[-1]) // ALIGNMENT) * ALIGNMENT if self._taken else 0
        wrapped = bool(self._taken) and self._taken[-1][0] < first
        if not wrapped and start + num_bytes > len(self._memory):
            start, wrapped = 0, bool(self._taken)
        if start + num_bytes > (first if wrapped else len(self._memory)):
            return None
        self._taken.append((start, num_bytes))
        return self._memory[start : start + num_bytes]

    def give_back(self) -> None:
        """Give back the memory that was taken first."""
        self._taken.popleft()


def read_ahead(
    pieces: Iterable[Piece], readers: list[TensorReader], num_bytes: int
) -> Iterator[tuple[Piece, Pieces]]:
    """Read pieces from all models at once, while the caller works on earlier ones.

    Args:
        num_bytes: Memory for pieces that are read or being read; at least that of the largest piece.

    Yields:
        Each piece, and its elements in all models: [P, n] if they have one dtype, else P times [n]. The
        memory is valid until the next piece is requested.
    """
    ring = RingBuffer(num_bytes)
    reading: deque[tuple[Piece, Pieces, list[Future[None]]]] = deque()
    source, postponed = iter(pieces), None
    with ThreadPoolExecutor(min(THREADS, len(readers))) as threads:
        while True:
            while piece := postponed or next(source, None):
                rows = _memory_for(piece, readers, ring)
                postponed = piece if rows is None else None
                if rows is None:
                    break
                reading.append((piece, rows, _start_reading(threads, piece, readers, rows)))
            if not reading:
                assert postponed is None, f"{postponed} needs more than {num_bytes} bytes"
                return
            piece, rows, futures = reading.popleft()
            for future in futures:
                future.result()
            yield piece, rows
            ring.give_back()


def _start_reading(
    threads: ThreadPoolExecutor, piece: Piece, readers: list[TensorReader], rows: Pieces
) -> list[Future[None]]:
    """Read a piece of every model; what several share, as adapters share their base model, only once."""
    stored: dict[TensorPlace, tuple[Future[None], Tensor]] = {}
    futures = []
    # Those that read into a row come first: threads take tasks in order, so that none waits for a later one.
    for reader, row in sorted(
        zip(readers, rows, strict=True), key=lambda pair: piece.name in pair[0].model.adapter
    ):
        place = reader.model.places[piece.name]
        future = threads.submit(reader.read_into, row, piece.name, piece.start, stored.get(place))
        if piece.name not in reader.model.adapter:
            stored.setdefault(place, (future, row))
        futures.append(future)
    return futures


def piece_bytes(readers: list[TensorReader], name: str, count: int) -> int:
    """Memory for a piece of every model."""
    return sum(count * reader.dtype_of(name).itemsize + ALIGNMENT for reader in readers)


def _memory_for(piece: Piece, readers: list[TensorReader], ring: RingBuffer) -> Pieces | None:
    """Memory for a piece of every model, if the ring buffer has enough.

    Models of one dtype get the rows of one matrix, so that a block is converted by a single call.
    """
    memory = ring.take(piece_bytes(readers, piece.name, piece.count))
    if memory is None:
        return None
    dtypes = [reader.dtype_of(piece.name) for reader in readers]
    if len(set(dtypes)) == 1:
        used = len(readers) * piece.count * dtypes[0].itemsize
        return memory[:used].view(dtypes[0]).view(len(readers), piece.count)
    rows, start = [], 0
    for dtype in dtypes:
        end = start + piece.count * dtype.itemsize
        rows.append(memory[start:end].view(dtype))
        start = -(-end // ALIGNMENT) * ALIGNMENT
    return rows

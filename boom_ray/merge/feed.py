"""Reading ahead: the pieces of all models, in the order they will be asked for, within a budget of bytes."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from boom_ray.merge.gram import Pieces
from boom_ray.merge.reader import SourceReader

THREADS = 8
ALIGNMENT = 64  # bytes


@dataclass(frozen=True)
class Piece:
    """A range of one tensor."""

    name: str
    start: int
    count: int


class Ring:
    """Memory handed out and taken back in turn, so that the pages of large pieces are used again and again.

    Args:
        num_bytes: Of all pieces that are out at a time.
    """

    def __init__(self, num_bytes: int) -> None:
        self._memory = torch.empty(num_bytes, dtype=torch.uint8)
        self._out: deque[tuple[int, int]] = deque()

    def take(self, num_bytes: int) -> Tensor | None:
        """[num_bytes] uint8, or None if there is no room until more is given back."""
        first = self._out[0][0] if self._out else 0
        start = -(-sum(self._out[-1]) // ALIGNMENT) * ALIGNMENT if self._out else 0
        wrapped = bool(self._out) and self._out[-1][0] < first
        if not wrapped and start + num_bytes > len(self._memory):
            start, wrapped = 0, bool(self._out)
        if start + num_bytes > (first if wrapped else len(self._memory)):
            return None
        self._out.append((start, num_bytes))
        return self._memory[start : start + num_bytes]

    def give_back(self) -> None:
        """Give back what was taken first."""
        self._out.popleft()


def read_ahead(
    pieces: Iterable[Piece], readers: list[SourceReader], num_bytes: int
) -> Iterator[tuple[Piece, Pieces]]:
    """Read pieces from all models at once, while the caller works on those before.

    Args:
        num_bytes: Memory for pieces read and being read; at least what the largest needs.

    Yields:
        Each piece, and its elements in all models: [P, n] if they are of one dtype, else P times [n]. Its
        memory is used again for the next.
    """
    ring, waiting = Ring(num_bytes), deque[tuple[Piece, Pieces, list[Future[None]]]]()
    upcoming = deque[Piece]()
    source = iter(pieces)
    with ThreadPoolExecutor(min(THREADS, len(readers))) as pool:
        while True:
            while upcoming or (following := next(source, None)):
                piece = upcoming.popleft() if upcoming else following
                assert piece is not None
                room = _room(piece, readers, ring)
                if room is None:
                    upcoming.append(piece)
                    break
                parts = [
                    pool.submit(reader.read_into, row, piece.name, piece.start)
                    for reader, row in zip(readers, room, strict=True)
                ]
                waiting.append((piece, room, parts))
            if not waiting:
                return
            piece, room, parts = waiting.popleft()
            for part in parts:
                part.result()
            yield piece, room
            ring.give_back()


def piece_bytes(readers: list[SourceReader], name: str, count: int) -> int:
    """Memory for a piece of every model."""
    return sum(count * reader.dtype_of(name).itemsize + ALIGNMENT for reader in readers)


def _room(piece: Piece, readers: list[SourceReader], ring: Ring) -> Pieces | None:
    """Memory for a piece of every model, if the ring has it."""
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

"""Reading ahead: the pieces of all models, in the order they will be asked for, within a budget of bytes."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from boom_ray.merge.reader import SourceReader

THREADS = 8


@dataclass(frozen=True)
class Piece:
    """A range of one tensor, and its elements in every model (the base's last)."""

    name: str
    start: int
    count: int


def read_ahead(
    pieces: Iterable[Piece], readers: list[SourceReader], bytes_ahead: int
) -> Iterator[tuple[Piece, list[Tensor]]]:
    """Read pieces from all models at once, while the caller works on those before.

    Args:
        bytes_ahead: What may be read beyond the piece the caller has; the next piece is read whatever its
            size.

    Yields:
        Each piece, and per model [count] in its own dtype.
    """
    waiting: deque[tuple[Piece, list[Future[Tensor]], int]] = deque()
    held = 0
    upcoming = iter(pieces)
    with ThreadPoolExecutor(min(THREADS, len(readers))) as pool:
        while True:
            while held <= bytes_ahead and (piece := next(upcoming, None)) is not None:
                size = sum(piece.count * reader.source.element_bytes for reader in readers)
                parts = [pool.submit(r.read, piece.name, piece.start, piece.count) for r in readers]
                waiting.append((piece, parts, size))
                held += size
            if not waiting:
                return
            piece, parts, size = waiting.popleft()
            yield piece, [part.result() for part in parts]
            held -= size

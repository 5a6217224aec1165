"""Output files of a merge, hashed and written front to back by a thread."""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import torch
import xxhash
from torch import Tensor

from boom_ray import storage
from boom_ray.artifacts.record import FileEntry, TensorEntry
from boom_ray.artifacts.tensors import header

PIECES_WAITING = 2  # enough to keep the writing thread busy; each one holds memory


class ShardWriter:
    """Writes one safetensors file: the header, then every tensor in the order declared.

    Args:
        uri: URI of the file.
        tensors: name -> (safetensors dtype, shape), in the order they are written.
    """

    def __init__(self, uri: str, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        self.uri, self.tensors = uri, tensors
        self.entries: dict[str, TensorEntry] = {}
        self._hashes: dict[str, xxhash.xxh3_128] = {}
        self._names = iter(tensors)
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        self._hash, self._size = xxhash.xxh3_128(), 0
        with storage.explained(uri):
            self._file = storage.open_output(uri)
        self._put(memoryview(header(tensors)[0]), xxhash.xxh3_128())

    def write(self, name: str, pieces: Iterable[Tensor]) -> None:
        """Write the next tensor, piece by piece, while the caller computes the following pieces."""
        assert name == next(self._names), f"{name} is not the next tensor"
        own = self._hashes[name] = xxhash.xxh3_128()
        for piece in pieces:
            self._put(memoryview(cast(Any, piece.contiguous().view(torch.uint8).numpy())), own)

    def close(self) -> FileEntry:
        """Finish the file; returns its size and hash."""
        self._drain(0)
        self._thread.shutdown()
        for name, (dtype, shape) in self.tensors.items():
            digest = self._hashes[name].hexdigest()
            self.entries[name] = TensorEntry(dtype=dtype, shape=list(shape), xxh3_128=digest)
        with storage.explained(self.uri):
            self._file.close()
        return FileEntry(size=self._size, xxh3_128=self._hash.hexdigest())

    def _put(self, content: memoryview, own: xxhash.xxh3_128) -> None:
        self._drain(PIECES_WAITING)
        self._waiting.append(self._thread.submit(self._write, content, own))

    def _drain(self, allowed: int) -> None:
        while len(self._waiting) > allowed:
            self._waiting.popleft().result()

    def _write(self, content: memoryview, own: xxhash.xxh3_128) -> None:
        own.update(content)
        self._hash.update(content)
        with storage.explained(self.uri):
            self._file.write(content)
        self._size += len(content)

"""One output file, streamed: tensors are read ahead, combined, and written while the next are read.

A tensor that fits into a worker's memory is read and converted once, for its Gram matrix and its
combination; a larger one goes by in chunks, once per pass. Inputs are hashed as they pass, so that a
damaged one is refused without a pass of its own.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import xxhash
from torch import Tensor

from boom_ray.errors import BoomError
from boom_ray.merge import gram
from boom_ray.merge.elementwise import Combination, combination, num_scans
from boom_ray.merge.feed import Piece, piece_bytes, read_ahead
from boom_ray.merge.gram import Pieces
from boom_ray.merge.job import Job, Products, Written
from boom_ray.merge.methods import Cancelled
from boom_ray.merge.plan import Shard
from boom_ray.merge.reader import TORCH_DTYPES, SourceReader
from boom_ray.merge.writer import ShardWriter
from boom_ray.storage import join

PROCESS_BYTES = 448 << 20  # of a worker before it reads anything: Python, torch, Ray
OUTPUT_ELEMENTS = 1 << 20  # of one write
PIECES_AT_A_TIME = 3
STREAMED_ELEMENTS = 1 << 22  # of a tensor that is read twice anyway

Feed = Iterator[tuple[Piece, Pieces]]


def merge_shard(job: Job, shard: Shard, tell: Callable[[int], object]) -> Written:
    """Write one file.

    Args:
        tell: Called with the output bytes written so far, after every tensor.

    Raises:
        BoomError: naming model and tensor, if an input is damaged, not finite, or directions cancel.
    """
    with TensorMerger(job) as merger:
        writer = ShardWriter(join(job.target, shard.file), job.declared(shard.tensors))
        feed = merger.feed(shard.tensors)
        done = 0
        for name in shard.tensors:
            writer.write(name, merger.merged(name, feed))
            done += job.num_bytes(name)
            tell(done)
        return Written(shard.file, writer.close(), writer.entries, merger.products, merger.equal)


def chunk_elements(job: Job) -> int:
    """Largest tensor that is read at once, in elements: in use, being read, and read ahead."""
    read = sum(source.element_bytes for source in job.all_sources)
    fitting = (job.memory_bytes - PROCESS_BYTES) // (PIECES_AT_A_TIME * read)
    return max(fitting // gram.BLOCK, 1) * gram.BLOCK


class TensorMerger:
    """Merges tensors of a job one after the other."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.readers = [SourceReader(source) for source in job.all_sources]
        self.chunk = chunk_elements(job)
        self.work = gram.work_dtype(TORCH_DTYPES[job.dtype])
        self.weights = torch.tensor(job.weights, dtype=torch.float64)
        self.products: dict[str, Products] = {}
        self.equal: set[str] = set()

    def __enter__(self) -> "TensorMerger":
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self.readers:
            reader.close()

    def feed(self, names: list[str]) -> Feed:
        """The pieces that `merged` takes for these tensors, in its order, read ahead."""
        pieces = (piece for name in names for piece in self._itinerary(name))
        return read_ahead(pieces, self.readers, self._room(names))

    def merged(self, name: str, feed: Feed) -> Iterator[Tensor]:
        """The merged tensor, in pieces of at most `OUTPUT_ELEMENTS`."""
        method = combination(self.job.method, self.weights, self.job.options, name)
        chunks = self._chunks(name)
        pieces, equal = self._scan(name, method, feed)
        for start, _ in chunks:
            if pieces is None or len(chunks) > 1:
                pieces = next(feed)[1]
            yield from self._combined(name, None if equal else method, pieces, start)

    def part_of_gram(self, name: str, start: int, count: int) -> tuple[Products, bool]:
        """The Gram matrix of a slice of a tensor, and whether all models are equal in it."""
        products, equal = self._zeros(), True
        for pieces in self._slice(name, start, count):
            gram.accumulate(products, pieces, self.work)
            equal = equal and self._are_equal(pieces)
        return products.tolist(), equal

    def part(self, name: str, start: int, count: int, equal: bool) -> Iterator[Tensor]:
        """A slice of the merged tensor, from the known Gram matrix of the whole."""
        method = combination(self.job.method, self.weights, self.job.options, name)
        if not equal:
            self._settle(name, method, torch.tensor(self.job.products[name], dtype=torch.float64))
        for pieces in self._slice(name, start, count):
            yield from self._combined(name, None if equal else method, pieces, start)
            start += len(pieces[0])

    def refuse_damaged(self, name: str, index: int, own: xxhash.xxh3_128) -> None:
        """Compare the hash of what was read of one model's tensor with its record."""
        source = self.job.all_sources[index]
        if own.hexdigest() != source.recorded_hash(name):
            raise BoomError(
                f"{source.places[name].uri}: tensor {name} is damaged: it differs from the record. "
                "Restore the file, or publish the model again"
            )

    def _slice(self, name: str, start: int, count: int) -> Iterator[Pieces]:
        end, size = start + count, self._chunk_of(self.job.sources[0].places[name].num_elements)
        pieces = (Piece(name, at, min(size, end - at)) for at in range(start, end, size))
        return (parts for _, parts in read_ahead(pieces, self.readers, self._room([name])))

    def _combined(
        self, name: str, method: Combination | None, pieces: Pieces, start: int
    ) -> Iterator[Tensor]:
        """What becomes of pieces, in writes of moderate size; the first model's without a method."""
        if method is None:
            yield from pieces[0].to(TORCH_DTYPES[self.job.dtype_of(name)], copy=True).split(OUTPUT_ELEMENTS)
            return
        for begin in range(0, len(pieces[0]), OUTPUT_ELEMENTS):
            part = _cut(pieces, begin, OUTPUT_ELEMENTS)
            merged = method.combined(part, start + begin, self.work, TORCH_DTYPES[self.job.dtype])
            if self.job.dtype == "F16" and not merged.isfinite().all():
                raise BoomError(f"tensor {name}: holds numbers beyond float16. Write bfloat16 or float32")
            yield merged

    def _chunks(self, name: str) -> list[tuple[int, int]]:
        total = self.job.sources[0].places[name].num_elements
        size = self._chunk_of(total)
        return [(start, min(size, total - start)) for start in range(0, total, size)]

    def _chunk_of(self, total: int) -> int:
        return self.chunk if total <= self.chunk else min(self.chunk, STREAMED_ELEMENTS)

    def _itinerary(self, name: str) -> Iterator[Piece]:
        chunks = self._chunks(name)
        for _ in range(1 if len(chunks) == 1 else self._num_scans(name) + 1):
            for start, count in chunks:
                yield Piece(name, start, count)

    def _num_scans(self, name: str) -> int:
        needed = num_scans(self.job.method)
        return 0 if needed == 1 and name in self.job.products else needed

    def _room(self, names: list[str]) -> int:
        """Bytes for three pieces: one in use, two read or being read."""
        largest = 0
        for name in names:
            total = self.job.sources[0].places[name].num_elements
            count = min(total, self._chunk_of(total))
            largest = max(largest, piece_bytes(self.readers, name, count))
        return PIECES_AT_A_TIME * largest

    def _zeros(self) -> Tensor:
        count = len(self.job.sources)
        return torch.zeros(count, count, dtype=torch.float64)

    def _are_equal(self, pieces: Pieces) -> bool:
        first, *others = list(pieces)[: len(self.job.sources)]
        return all(other.dtype == first.dtype and _same_bytes(first, other) for other in others)

    def _scan(self, name: str, method: Combination, feed: Feed) -> tuple[Pieces | None, bool]:
        """Make a method ready for one tensor.

        Returns:
            The pieces read last, if any, and whether the tensor is equal in all models.
        """
        chunks, products, equal = self._chunks(name), self._zeros(), True
        hashes = [xxhash.xxh3_128() if s.recorded_hash(name) else None for s in self.job.all_sources]
        pieces: Pieces | None = None
        for number in range(self._num_scans(name)):
            for index in range(len(chunks)):
                if pieces is None or len(chunks) > 1:
                    pieces = next(feed)[1]
                if number == 0:
                    gram.accumulate(products, pieces, self.work)
                    equal = equal and self._are_equal(pieces)
                    _update(hashes, pieces)
                method.scan(number, pieces, self.work, index == len(chunks) - 1)
        if not self._num_scans(name):
            products = torch.tensor(self.job.products[name], dtype=torch.float64)
            equal = False
        elif chunks:
            for index, own in enumerate(hashes):
                if own:
                    self.refuse_damaged(name, index, own)
        if chunks and not equal:
            products = self._settle(name, method, products)
        self.products[name] = products.tolist()
        if equal:
            self.equal.add(name)
        return pieces, equal

    def _settle(self, name: str, method: Combination, products: Tensor) -> Tensor:
        """Give a method the Gram matrix, or a better one; returns the one it was given."""
        if not self.job.sources[0].places[name].is_floating:
            raise BoomError(
                f"tensor {name} is no floating one and differs between the models; only floats merge"
            )
        if self.work == torch.float32 and not gram.is_certain(products, self.weights):
            products = self._exact_products(name)
        if not products.isfinite().all():
            raise BoomError(f"{self._not_finite(name)}: tensor {name} holds NaN or Inf. "
                            "Leave that model out, or train it again")  # fmt: skip
        try:
            method.settle(products)
        except Cancelled:
            raise BoomError(
                f"tensor {name}: the models point in opposite directions that cancel under these weights. "
                "Use other weights, or method linear"
            ) from None
        return products

    def _exact_products(self, name: str) -> Tensor:
        """The Gram matrix again, in float64: where squares are extreme, or directions nearly cancel."""
        products = self._zeros()
        for pieces in self._again(name):
            gram.accumulate(products, pieces, torch.float64)
        return products

    def _not_finite(self, name: str) -> str:
        culprits = {
            reader.source.uri: None
            for pieces in self._again(name)
            for reader, piece in zip(self.readers, pieces, strict=True)
            if not piece.isfinite().all()
        }
        return ", ".join(culprits) or "the models"

    def _again(self, name: str) -> Iterator[Pieces]:
        return self._slice(name, 0, self.job.sources[0].places[name].num_elements)


def _cut(pieces: Pieces, start: int, count: int) -> Pieces:
    if isinstance(pieces, Tensor):
        return pieces[:, start : start + count]
    return [piece[start : start + count] for piece in pieces]


def _update(hashes: list[xxhash.xxh3_128 | None], pieces: Pieces) -> None:
    for own, piece in zip(hashes, pieces, strict=True):
        if own:
            own.update(memoryview(cast(Any, piece.view(torch.uint8).numpy())))


def _same_bytes(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.view(torch.uint8), second.view(torch.uint8))

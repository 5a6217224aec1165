"""One output file, streamed: tensors are read ahead, combined, and written while the next ones are read.

Every merge needs two passes over a tensor: the coefficients depend on the Gram matrix of the whole tensor, so
the first element of the result is known only after the last element of the inputs. A tensor that fits into a
worker's memory is read once and both passes run in memory. A larger one is read in chunks, once per pass.
Inputs are hashed in the first pass, so that a damaged one is refused without a pass of its own.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import xxhash
from torch import Tensor

from boom_ray.errors import InputError, StorageError
from boom_ray.merge import gram
from boom_ray.merge.elementwise import ByGram, Combination, combination, num_scans
from boom_ray.merge.gram import Pieces
from boom_ray.merge.layer_groups import weights_of
from boom_ray.merge.low_rank import Factors, row_blocks
from boom_ray.merge.merge_job import GramMatrix, MergeJob, WrittenShard
from boom_ray.merge.methods import DirectionsCancel, keeps_equal_tensors
from boom_ray.merge.read_ahead import Piece, piece_bytes, read_ahead
from boom_ray.merge.shard_writer import ShardWriter
from boom_ray.merge.shards import Shard
from boom_ray.merge.tensor_reader import TORCH_DTYPES, TensorReader, damaged
from boom_ray.storage import join

PROCESS_BYTES = 448 << 20  # memory of a worker before it reads anything: Python, torch, Ray
OUTPUT_ELEMENTS = 1 << 20  # elements of one write: the writing thread starts early, and holds little memory
PIECES_AT_A_TIME = 3  # one in use, one read ahead, one being read
# Chunk of a tensor that does not fit. It is read once per pass whatever the size of its chunks, and with
# small chunks reading and computing overlap sooner.
STREAMED_ELEMENTS = 1 << 22

PieceStream = Iterator[tuple[Piece, Pieces]]


def merge_shard(job: MergeJob, shard: Shard, report: Callable[[int], object]) -> WrittenShard:
    """Write one file.

    Args:
        report: Called with the output bytes written so far, after every tensor.

    Raises:
        StorageError: if an input is damaged; names its file and the tensor.
        InputError: if an input has NaN or Inf, or directions cancel; names model and tensor.
    """
    with TensorMerger(job) as merger:
        writer = ShardWriter(join(job.target, shard.file), job.declared(shard.tensors))
        stream = merger.pieces(shard.tensors)
        written = 0
        for name in shard.tensors:
            writer.write(name, merger.merged(name, stream))
            written += job.num_bytes(name)
            report(written)
        return WrittenShard(shard.file, writer.close(), writer.entries, merger.grams, merger.equal)


def chunk_elements(job: MergeJob) -> int:
    """Elements of the largest tensor that is read at once; a multiple of the block size."""
    read = sum(model.element_bytes for model in job.all_inputs)
    fitting = (job.settings.execution.memory_bytes - PROCESS_BYTES) // (PIECES_AT_A_TIME * read)
    return max(fitting // gram.BLOCK, 1) * gram.BLOCK


class TensorMerger:
    """Merges tensors of a job one after the other.

    Attributes:
        grams: Gram matrices of the tensors merged so far.
        equal: Names of those that are equal in all models.
    """

    def __init__(self, job: MergeJob) -> None:
        self.job = job
        self.readers = [TensorReader(model) for model in job.all_inputs]
        self.chunk = chunk_elements(job)
        self.work = gram.work_dtype(TORCH_DTYPES[job.dtype])
        self.grams: dict[str, GramMatrix] = {}
        self.equal: set[str] = set()

    def __enter__(self) -> "TensorMerger":
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self.readers:
            reader.close()

    def pieces(self, names: list[str]) -> PieceStream:
        """The pieces that `merged` needs for these tensors, in its order, read ahead."""
        dense = [name for name in names if not self.job.is_low_rank(name)]
        order = (piece for name in dense for piece in self._all_passes(name))
        return read_ahead(order, self.readers, self._memory_for(dense))

    def merged(self, name: str, stream: PieceStream) -> Iterator[Tensor]:
        """The merged tensor, in pieces of at most `OUTPUT_ELEMENTS`."""
        if self.job.is_low_rank(name):
            yield from self._from_factors(name, 0, self.job.num_elements(name))
            return
        method = combination(self.job.settings, self._weights(name), name)
        chunks = self._chunks(name)
        pieces, copied = self._scan(name, method, stream)
        for chunk in chunks:
            if pieces is None or len(chunks) > 1:
                pieces = _next(stream, chunk)
            yield from self._combined(name, None if copied else method, pieces, chunk.start)

    def partial_gram(self, name: str, start: int, count: int) -> tuple[GramMatrix, bool]:
        """The Gram matrix of a slice of a tensor, and whether it is copied.

        That of factors is of the whole tensor, and counts for its first slice.
        """
        if self.job.is_low_rank(name):
            return (self._zeros() if start else self._factors(name).gram()).tolist(), False
        products, equal = self._zeros(), True
        for _, pieces in self._slice(name, start, count):
            gram.accumulate(products, pieces, self.work)
            equal = equal and self._is_copied(name, pieces)
        return products.tolist(), equal

    def merged_slice(self, name: str, start: int, count: int, equal: bool) -> Iterator[Tensor]:
        """A slice of the merged tensor, from the Gram matrix of the whole tensor in `job.grams`."""
        if self.job.is_low_rank(name):
            yield from self._from_factors(name, start, count)
            return
        method = combination(self.job.settings, self._weights(name), name)
        if not equal:
            self._finalize(name, method, torch.tensor(self.job.grams[name], dtype=torch.float64))
        for piece, pieces in self._slice(name, start, count):
            yield from self._combined(name, None if equal else method, pieces, piece.start)

    def combined_factors(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients [M] and factors [out, R] and [R, in] of a low-rank merged task vector, in float64."""
        method, factors = ByGram(self._weights(name), self.job.settings), self._factors(name)
        self.grams[name] = self._finalize(name, method, factors.gram()).tolist()
        return method.coefficients, factors.combined(method.coefficients), factors.a

    def refuse_damaged(self, name: str, index: int, computed: xxhash.xxh3_128) -> None:
        """Compare the hash of one model's tensor with its record.

        Raises:
            StorageError: if they differ.
        """
        model = self.job.all_inputs[index]
        if computed.hexdigest() != model.recorded_hash(name):
            raise StorageError(damaged(model.places[name]))

    def _factors(self, name: str) -> Factors:
        return Factors.read(self.readers[: len(self.job.inputs)], name)

    def _from_factors(self, name: str, start: int, count: int) -> Iterator[Tensor]:
        """A range of a tensor that adapters alone change: base rows plus one product of all factors."""
        coefficients, b, a = self.combined_factors(name)
        work = gram.dtype_for(coefficients, self.work)
        b, a = b.to(work), a.to(work)
        end, width, computed = start + count, a.shape[1], xxhash.xxh3_128()
        for piece, (stored,) in self._base_rows(name, start, end):
            computed.update(memoryview(cast(Any, stored.view(torch.uint8).numpy())))
            first, last = piece.start // width, (piece.start + piece.count) // width
            rows = torch.addmm(stored.view(-1, width).to(work), b[first:last], a).view(-1)
            if not rows.isfinite().all():
                raise self._refuse_values(name)
            yield self._rounded(name, rows[max(start - piece.start, 0) : end - piece.start])
        whole = count == self.job.num_elements(name)
        if whole and self.job.all_inputs[-1].recorded_hash(name):
            self.refuse_damaged(name, len(self.job.inputs), computed)

    def _base_rows(self, name: str, start: int, end: int) -> PieceStream:
        base, shape = self.readers[-1:], self.job.inputs[0].places[name].shape
        order = [Piece(name, *rows) for rows in row_blocks(shape, OUTPUT_ELEMENTS, start, end)]
        memory = PIECES_AT_A_TIME * max((piece_bytes(base, name, piece.count) for piece in order), default=0)
        return read_ahead(order, base, memory)

    def _rounded(self, name: str, merged: Tensor) -> Tensor:
        """Values in the dtype of the output; refuses those beyond float16, if it is that."""
        rounded = merged.to(TORCH_DTYPES[self.job.dtype])
        if self.job.dtype == "F16" and not rounded.isfinite().all():
            raise InputError(f"tensor {name}: has values beyond float16. Use dtype bfloat16 or float32")
        return rounded

    def _slice(self, name: str, start: int, count: int) -> PieceStream:
        end, size = start + count, self._chunk_of(self.job.num_elements(name))
        order = (Piece(name, first, min(size, end - first)) for first in range(start, end, size))
        return read_ahead(order, self.readers, self._memory_for([name]))

    def _combined(
        self, name: str, method: Combination | None, pieces: Pieces, start: int
    ) -> Iterator[Tensor]:
        """The merged pieces, in writes of moderate size; a copy of the first model's without a method."""
        if method is None:
            yield from pieces[0].to(TORCH_DTYPES[self.job.dtype_of(name)], copy=True).split(OUTPUT_ELEMENTS)
            return
        for begin in range(0, len(pieces[0]), OUTPUT_ELEMENTS):
            part = _cut(pieces, begin, OUTPUT_ELEMENTS)
            merged = method.combined(part, start + begin, self.work, TORCH_DTYPES[self.job.dtype])
            yield self._rounded(name, merged)

    def _chunks(self, name: str) -> list[Piece]:
        total = self.job.num_elements(name)
        size = self._chunk_of(total)
        return [Piece(name, start, min(size, total - start)) for start in range(0, total, size)]

    def _chunk_of(self, total: int) -> int:
        return self.chunk if total <= self.chunk else min(self.chunk, STREAMED_ELEMENTS)

    def _all_passes(self, name: str) -> Iterator[Piece]:
        chunks = self._chunks(name)
        for _ in range(1 if len(chunks) == 1 else self._num_scans(name) + 1):
            yield from chunks

    def _num_scans(self, name: str) -> int:
        """Passes before the combination; none if the Gram matrix is cached and the method needs only that."""
        needed = num_scans(self.job.settings.method)
        return 0 if needed == 1 and name in self.job.grams else needed

    def _memory_for(self, names: list[str]) -> int:
        """Bytes of `PIECES_AT_A_TIME` of the largest pieces."""
        largest = 0
        for name in names:
            total = self.job.num_elements(name)
            count = min(total, self._chunk_of(total))
            largest = max(largest, piece_bytes(self.readers, name, count))
        return PIECES_AT_A_TIME * largest

    def _weights(self, name: str) -> Tensor:
        return torch.tensor(weights_of(self.job.weights, name), dtype=torch.float64)

    def _zeros(self) -> Tensor:
        count = len(self.job.inputs)
        return torch.zeros(count, count, dtype=torch.float64)

    def _is_copied(self, name: str, pieces: Pieces) -> bool:
        """Whether all models are equal in these pieces, and their merge is the same again."""
        return self._are_equal(pieces) and self._comes_back(name, pieces)

    def _comes_back(self, name: str, pieces: Pieces) -> bool:
        """Whether equal models are their own merge; always if they equal the base: task vectors are zero.

        Never if they have NaN or Inf, which their Gram matrix shows: it is refused like that of one model.
        """
        if not pieces[0].isfinite().all():
            return False
        if not pieces[0].is_floating_point():
            return True
        if keeps_equal_tensors(self.job.settings, weights_of(self.job.weights, name)):
            return True
        return self.job.base is not None and _same_tensor(pieces[0], pieces[-1])

    def _are_equal(self, pieces: Pieces) -> bool:
        first, *others = list(pieces)[: len(self.job.inputs)]
        return all(_same_tensor(first, other) for other in others)

    def _scan(self, name: str, method: Combination, stream: PieceStream) -> tuple[Pieces | None, bool]:
        """Prepare a method for one tensor: accumulate its Gram matrix, and run the scans of the method.

        A tensor whose bytes are equal in all models is copied, if the method keeps it: a frozen tensor comes
        out bit for bit as it went in, and integer tensors (position ids) pass, which cannot be averaged.

        Returns:
            The pieces read last, if any, and whether the tensor is copied.
        """
        chunks, products, equal, copied = self._chunks(name), self._zeros(), True, True
        hashes = [xxhash.xxh3_128() if m.recorded_hash(name) else None for m in self.job.all_inputs]
        pieces: Pieces | None = None
        for number in range(self._num_scans(name)):
            for index, chunk in enumerate(chunks):
                if pieces is None or len(chunks) > 1:
                    pieces = _next(stream, chunk)
                if number == 0:
                    gram.accumulate(products, pieces, self.work)
                    equal = equal and self._are_equal(pieces)
                    copied = copied and equal and self._comes_back(name, pieces)
                    _update(hashes, pieces)
                method.scan(number, pieces, self.work, index == len(chunks) - 1)
        if not self._num_scans(name):
            products = torch.tensor(self.job.grams[name], dtype=torch.float64)
            equal = copied = False  # only tensors that differ are cached: see `MergeOutput.reusable`
        elif chunks:
            for index, computed in enumerate(hashes):
                if computed:
                    self.refuse_damaged(name, index, computed)
        if chunks and not copied:
            products = self._finalize(name, method, products)
        self.grams[name] = products.tolist()
        if equal:
            self.equal.add(name)
        return pieces, copied

    def _finalize(self, name: str, method: Combination, products: Tensor) -> Tensor:
        """Give the Gram matrix to the method, recomputed in float64 if needed; returns what it was given."""
        if not self.job.inputs[0].places[name].is_floating:
            raise InputError(
                f"tensor {name}: is not floating-point and differs between the models. Only floating-point "
                "tensors can be merged"
            )
        if self.work == torch.float32 and not gram.is_certain(products, self._weights(name)):
            products = self._exact_products(name)
        if not products.isfinite().all():
            raise self._refuse_values(name)
        try:
            method.finalize(products)
        except DirectionsCancel:
            raise InputError(
                f"tensor {name}: the models point in opposite directions that cancel under these weights. "
                "Use other weights, or method linear"
            ) from None
        return products

    def _exact_products(self, name: str) -> Tensor:
        """The Gram matrix from float64 products: for extreme squares, or directions that nearly cancel."""
        if self.job.is_low_rank(name):
            return self._factors(name).gram()
        products = self._zeros()
        for _, pieces in self._whole(name):
            gram.accumulate(products, pieces, torch.float64)
        return products

    def _refuse_values(self, name: str) -> InputError:
        """The error for a tensor with NaN or Inf, which names the models that have them."""
        culprits = {
            reader.model.uri: None
            for _, pieces in self._whole(name)
            for reader, piece in zip(self.readers, pieces, strict=True)
            if not piece.isfinite().all()
        }
        return InputError(
            f"{', '.join(culprits) or 'the models'}: tensor {name} has NaN or Inf. Leave that model out, or "
            "train it again"
        )

    def _whole(self, name: str) -> PieceStream:
        """One more pass over a tensor, apart from the stream of planned pieces."""
        return self._slice(name, 0, self.job.num_elements(name))


def _next(stream: PieceStream, expected: Piece) -> Pieces:
    """The next pieces of a stream.

    The stream is planned for all tensors of a file before the first is merged. If plan and use ever differed,
    values of one tensor would be written under the name of another, with hashes that match.

    Raises:
        RuntimeError: if the next piece is not the expected one.
    """
    piece, pieces = next(stream, (None, ()))
    if piece != expected:
        raise RuntimeError(f"expected {expected} next, but read {piece}")
    return pieces


def _cut(pieces: Pieces, start: int, count: int) -> Pieces:
    if isinstance(pieces, Tensor):
        return pieces[:, start : start + count]
    return [piece[start : start + count] for piece in pieces]


def _update(hashes: list[xxhash.xxh3_128 | None], pieces: Pieces) -> None:
    for computed, piece in zip(hashes, pieces, strict=True):
        if computed:
            computed.update(memoryview(cast(Any, piece.view(torch.uint8).numpy())))


def _same_tensor(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first.view(torch.uint8), second.view(torch.uint8))

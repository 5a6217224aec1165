"""One output shard, streamed: every tensor is read once for its Gram matrix and once to be combined.

A tensor that fits into one chunk is read only once. Inputs are hashed as they pass, so that a damaged one
is refused without a pass of its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

from boom_ray import storage
from boom_ray.artifact import FileEntry, TensorEntry
from boom_ray.errors import BoomError
from boom_ray.merge import gram
from boom_ray.merge.check import Inputs
from boom_ray.merge.methods import METHODS, Cancelled
from boom_ray.merge.plan import Shard
from boom_ray.merge.tensors import DTYPES, ShardWriter, TensorReader

CHUNK = 4 << 20  # elements of one tensor that are in memory at a time, per model


@dataclass(frozen=True)
class Job:
    """What a worker is given.

    Attributes:
        inputs: The models.
        method: A name of `METHODS`.
        weights: One per model, with sum 1.
        dtype: Of the floating tensors written.
        target: URI of the directory the shards are written to.
    """

    inputs: Inputs
    method: str
    weights: list[float]
    dtype: torch.dtype
    target: str

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype a tensor is written in: integers stay what they are."""
        place = self.inputs.places[0][name]
        return self.dtype if place.is_floating else DTYPES[place.dtype]


def merge_shard(
    job: Job, shard: Shard, tell: Callable[[int], object]
) -> tuple[FileEntry, dict[str, TensorEntry]]:
    """Write one shard.

    Args:
        tell: Called with the output bytes written so far, after every tensor.

    Returns:
        The entries of the file and of its tensors.

    Raises:
        BoomError: naming model and tensor, if an input is damaged, not finite, or directions cancel.
    """
    places = job.inputs.places[0]
    declared = {name: (job.dtype_of(name), places[name].shape) for name in shard.tensors}
    writer = ShardWriter(storage.join(job.target, shard.file), declared)
    merger = _TensorMerger(job)
    written = 0
    for name in shard.tensors:
        writer.write(name, merger.merged(name))
        written += places[name].num_elements * declared[name][0].itemsize
        tell(written)
    return writer.close(), writer.entries


class _TensorMerger:
    """Merges tensors one after the other."""

    def __init__(self, job: Job) -> None:
        self.job, inputs = job, job.inputs
        self.readers = [TensorReader(m, p) for m, p in zip(inputs.models, inputs.places, strict=True)]
        self.base = (
            TensorReader(inputs.base, inputs.base_places) if inputs.base and inputs.base_places else None
        )

    def merged(self, name: str) -> Iterator[Tensor]:
        """The merged tensor, in pieces of at most `CHUNK` elements."""
        place = self.job.inputs.places[0][name]
        products = torch.zeros(len(self.readers), len(self.readers), dtype=torch.float64)
        hashes = [xxhash.xxh3_128() for _ in self.readers]
        starts = range(0, place.num_elements, CHUNK)
        pieces: list[Tensor] = []
        base: Tensor | None = None
        for start in starts:
            pieces, base = self._read(name, start, hashes)
            if place.is_floating:
                gram.accumulate(products, pieces, base)
                self._refuse_not_finite(name, products, pieces, base)
        digests = [hasher.hexdigest() for hasher in hashes]
        self._refuse_damaged(name, digests)
        if len(set(digests)) == 1 and len({places[name].dtype for places in self.job.inputs.places}) == 1:
            yield from self._copied(name, starts, pieces)
            return
        if not place.is_floating:
            raise BoomError(
                f"tensor {name} is {place.dtype} and differs between the models; only floats merge"
            )
        coefficients = self._coefficients(name, products)
        for start in starts:
            if len(starts) > 1:
                pieces, base = self._read(name, start)
            yield gram.combine(pieces, coefficients, self.job.dtype, base)

    def _read(
        self, name: str, start: int, hashes: list[xxhash.xxh3_128] | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        count = min(CHUNK, self.job.inputs.places[0][name].num_elements - start)
        pieces = []
        for index, reader in enumerate(self.readers):
            piece, content = reader.read(name, start, count)
            if hashes:
                hashes[index].update(content)
            pieces.append(piece)
        return pieces, self.base.read(name, start, count)[0] if self.base else None

    def _copied(self, name: str, starts: range, pieces: list[Tensor]) -> Iterator[Tensor]:
        """A tensor equal in all models is the result itself, bit for bit."""
        for start in starts:
            piece = pieces[0] if len(starts) == 1 else self._read(name, start)[0][0]
            yield piece.to(self.job.dtype_of(name))

    def _coefficients(self, name: str, products: Tensor) -> Tensor:
        weights = torch.tensor(self.job.weights, dtype=torch.float64)
        try:
            return METHODS[self.job.method](products, weights)
        except Cancelled:
            raise BoomError(
                f"tensor {name}: the models point in opposite directions that cancel under these weights. "
                "Use other weights, or method linear"
            ) from None

    def _refuse_not_finite(
        self, name: str, products: Tensor, pieces: list[Tensor], base: Tensor | None
    ) -> None:
        if products.isfinite().all():
            return
        culprits = [m for m, p in zip(self.job.inputs.models, pieces, strict=True) if not p.isfinite().all()]
        if base is not None and not base.isfinite().all():
            culprits.append(str(self.job.inputs.base))
        where = ", ".join(culprits) or "the models"
        raise BoomError(f"{where}: tensor {name} holds NaN or Inf. Leave that model out, or train it again")

    def _refuse_damaged(self, name: str, digests: list[str]) -> None:
        inputs = self.job.inputs
        for model, places, record, digest in zip(
            inputs.models, inputs.places, inputs.records, digests, strict=True
        ):
            if record and name in record.tensors and record.tensors[name].xxh3_128 != digest:
                raise BoomError(
                    f"{storage.join(model, places[name].file)}: tensor {name} is damaged: it differs "
                    "from the record. Restore the file, or publish the model again"
                )

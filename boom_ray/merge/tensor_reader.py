"""Reading ranges of a model's tensors into memory."""

from concurrent.futures import Future
from typing import Any, cast

import torch
import xxhash
from torch import Tensor

from boom_ray.artifacts.tensors import TensorPlace
from boom_ray.errors import StorageError
from boom_ray.merge.inputs import MergeInput
from boom_ray.model.adapter import LowRank
from boom_ray.storage import RangeReader

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def damaged(place: TensorPlace) -> str:
    """What is wrong with a tensor that differs from the record of its model, and the remedy."""
    return (
        f"{place.uri}: tensor {place.name} is damaged: it differs from the record. "
        "Restore the file, or publish the model again"
    )


class TensorReader:
    """Reads ranges of a model's tensors; safe for any number of threads. Files are opened once."""

    def __init__(self, model: MergeInput) -> None:
        self.model = model
        self._files = {uri: RangeReader(uri) for uri in sorted({place.uri for place in model.all_places})}
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype a tensor is read in: its own, or float32 if an adapter updates it."""
        return torch.float32 if name in self.model.adapter else TORCH_DTYPES[self.model.places[name].dtype]

    def read_into(
        self, target: Tensor, name: str, start: int, stored: tuple[Future[None], Tensor] | None = None
    ) -> None:
        """Read elements of a tensor.

        Args:
            target: [n] of `dtype_of(name)`, to be filled with the elements from `start` on.
            stored: What the file holds of them, [n], once its future is done; by default the file is read.
        """
        place = self.model.places[name]
        low = self.model.adapter.get(name)
        if stored is None:
            own = target if low is None else torch.empty(len(target), dtype=TORCH_DTYPES[place.dtype])
            self._fill(own, place, start)
        else:
            reading, own = stored
            reading.result()
        if low is not None:
            torch.add(own, self._update(name, low, start, len(target)), out=target)
        elif own is not target:
            target.copy_(own)

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()

    def _fill(self, target: Tensor, place: TensorPlace, start: int) -> None:
        if len(target):
            content = memoryview(cast(Any, target.view(torch.uint8).numpy()))
            self._files[place.uri].read_into(content, place.offset + start * place.element_bytes)

    def _factor(self, place: TensorPlace) -> Tensor:
        """A matrix of an adapter in float32.

        Raises:
            StorageError: if it differs from the record of the adapter.
        """
        values = torch.empty(place.num_elements, dtype=TORCH_DTYPES[place.dtype])
        self._fill(values, place, 0)
        recorded = self.model.record and self.model.record.tensors.get(place.name)
        content = memoryview(cast(Any, values.view(torch.uint8).numpy()))
        if recorded and xxhash.xxh3_128_hexdigest(content) != recorded.xxh3_128:
            raise StorageError(damaged(place))
        return values.view(place.shape).float()

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """The matrices of the adapter for a tensor: `a` [rank, in] and `b` [out, rank], float32.

        `in` and `out` are the columns and rows of the tensor as it is stored.

        Raises:
            StorageError: if one differs from the record of the adapter.
        """
        found = self._factors.get(name)
        if found is None:
            low = self.model.adapter[name]
            found = self._factor(low.a), self._factor(low.b)
            if low.transposed:
                found = found[1].T.contiguous(), found[0].T.contiguous()
            # Only the factors used last are kept. Threads that read different tensors replace each other's
            # dictionary, but none changes one, so `found` always belongs to `name`.
            self._factors = {name: found}
        return found

    def _update(self, name: str, low: LowRank, start: int, count: int) -> Tensor:
        """Elements of `scale * b @ a`, computed for the rows they are in: [count] float32."""
        a, b = self.factors(name)
        first, last = start // a.shape[1], -(-(start + count) // a.shape[1])
        rows = (b[first:last] @ a).mul_(low.scale)
        return rows.view(-1)[start - first * a.shape[1] :][:count]

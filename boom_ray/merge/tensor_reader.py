"""Reading ranges of a model's tensors into memory."""

from typing import Any, cast

import torch
from torch import Tensor

from boom_ray.artifacts.tensors import TensorPlace
from boom_ray.merge.inputs import LowRank, MergeInput
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


class TensorReader:
    """Reads ranges of a model's tensors; safe for any number of threads. Files are opened once."""

    def __init__(self, model: MergeInput) -> None:
        self.model = model
        places = [*model.places.values(), *(p for low in model.adapter.values() for p in (low.a, low.b))]
        self._files = {uri: RangeReader(uri) for uri in sorted({place.uri for place in places})}
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype a tensor is read in: its own, or float32 if an adapter updates it."""
        return torch.float32 if name in self.model.adapter else TORCH_DTYPES[self.model.places[name].dtype]

    def read_into(self, target: Tensor, name: str, start: int) -> None:
        """Fill `target`, [n] of `dtype_of(name)`, with the elements of a tensor that begin at `start`."""
        place = self.model.places[name]
        low = self.model.adapter.get(name)
        if low is None:
            self._fill(target, place, start)
            return
        own = torch.empty(len(target), dtype=TORCH_DTYPES[place.dtype])
        self._fill(own, place, start)
        torch.add(own, self._update(name, low, start, len(target)), out=target)

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()

    def _fill(self, target: Tensor, place: TensorPlace, start: int) -> None:
        if len(target):
            content = memoryview(cast(Any, target.view(torch.uint8).numpy()))
            self._files[place.uri].read_into(content, place.offset + start * place.element_bytes)

    def _whole(self, place: TensorPlace) -> Tensor:
        values = torch.empty(place.num_elements, dtype=TORCH_DTYPES[place.dtype])
        self._fill(values, place, 0)
        return values.view(place.shape).float()

    def _update(self, name: str, low: LowRank, start: int, count: int) -> Tensor:
        """Elements of `scale * b @ a`, computed for the rows they are in: [count] float32."""
        factors = self._factors.get(name)
        if factors is None:
            factors = self._whole(low.a), self._whole(low.b)
            if low.transposed:
                factors = factors[1].T.contiguous(), factors[0].T.contiguous()
            # Only the factors used last are kept. Threads that read different tensors replace each other's
            # dictionary, but none changes one, so `factors` always belongs to `name`.
            self._factors = {name: factors}
        a, b = factors
        first, last = start // a.shape[1], -(-(start + count) // a.shape[1])
        rows = (b[first:last] @ a).mul_(low.scale)
        return rows.view(-1)[start - first * a.shape[1] :][:count]

"""Ranges of a model's tensors, read into memory."""

import numpy as np
import torch
from torch import Tensor

from boom_ray.merge.source import LowRank, Source
from boom_ray.merge.tensors import TensorPlace
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


class SourceReader:
    """Reads ranges of a model's tensors, from any number of threads at once; files are opened once."""

    def __init__(self, source: Source) -> None:
        self.source = source
        places = [*source.places.values(), *(p for low in source.adapter.values() for p in (low.a, low.b))]
        self._files = {uri: RangeReader(uri) for uri in sorted({place.uri for place in places})}
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}

    def read(self, name: str, start: int, count: int) -> Tensor:
        """[count] elements from element `start` on, in the tensor's dtype; float32 under an adapter."""
        own = self._range(self.source.places[name], start, count)
        low = self.source.adapter.get(name)
        return own if low is None else own.float() + self._difference(name, low, start, count)

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()

    def _range(self, place: TensorPlace, start: int, count: int) -> Tensor:
        width = place.element_bytes
        content = np.empty(count * width, dtype=np.uint8)
        if count:
            self._files[place.uri].read_into(content.data, place.offset + start * width)
        return torch.from_numpy(content).view(TORCH_DTYPES[place.dtype])

    def _difference(self, name: str, low: LowRank, start: int, count: int) -> Tensor:
        if name not in self._factors:
            a, b = (self._range(p, 0, p.num_elements).view(p.shape).float() for p in (low.a, low.b))
            self._factors = {name: (a, b)}
        a, b = self._factors[name]
        first, last = start // a.shape[1], -(-(start + count) // a.shape[1])
        rows = (b[first:last] @ a).mul_(low.scale)
        return rows.view(-1)[start - first * a.shape[1] :][:count]

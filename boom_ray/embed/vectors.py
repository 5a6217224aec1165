"""Reduction of embeddings before they are stored: fewer dimensions, smaller numbers.

The types have the names of sentence-transformers (`quantize_embeddings`), and its values; but `int8` and
`uint8` are rounded to the nearest step, where it truncates, and values outside the ranges do not wrap around.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from boom_ray.embed.embed_options import VectorType
from boom_ray.errors import InputError

STORED = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "int8": pa.int8(),
    "uint8": pa.uint8(),
    "binary": pa.int8(),
    "ubinary": pa.uint8(),
}
SCALED = ("int8", "uint8")
PACKED = ("binary", "ubinary")
INT8_OFFSET = 128  # a stored int8 is 128 less than the uint8 of the same step, or of the same bits


@dataclass(frozen=True)
class Scales:
    """The range of each dimension, which `int8` and `uint8` divide into 255 steps.

    Attributes:
        low: [dimensions] float32, the value stored as -128 (`int8`) or 0 (`uint8`).
        high: [dimensions] float32, the value stored as 127 or 255.
    """

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def from_lists(cls, low: list[float], high: list[float]) -> "Scales":
        """From numbers as JSON holds them."""
        return cls(np.array(low, dtype=np.float32), np.array(high, dtype=np.float32))

    def to_lists(self) -> dict[str, list[float]]:
        """As records and the metadata of partitions hold them: the shortest numbers of the same float32."""
        return {name: [float(str(value)) for value in getattr(self, name)] for name in ("low", "high")}


@dataclass(frozen=True)
class Reduction:
    """From [n, d] float32 of norm 1 to the stored numbers.

    Attributes:
        dimensions: Leading dimensions that are kept.
        dtype: `int8` and `uint8` divide the range of each dimension into 255 steps; `binary` (bytes as int8)
            and `ubinary` (as uint8) keep signs, eight in a byte.
        scales: The ranges for `int8` and `uint8`.
    """

    dimensions: int
    dtype: VectorType
    scales: Scales | None = None

    def shortened(self, vectors: np.ndarray) -> np.ndarray:
        """[n, dimensions]: the leading dimensions, normalized again."""
        if self.dimensions == vectors.shape[1]:
            return vectors
        leading = vectors[:, : self.dimensions]
        return leading / np.linalg.norm(leading, axis=1, keepdims=True).clip(min=1e-12)

    def fit(self, sample: np.ndarray) -> Scales:
        """The range of each dimension in a sample of [n, d] embeddings."""
        shortened = self.shortened(sample)
        low, high = shortened.min(0), shortened.max(0)
        return Scales(low, np.maximum(high, low + 1e-6))  # a constant dimension must not divide by zero

    def __call__(self, vectors: np.ndarray) -> pa.FixedSizeListArray:
        """[n] lists of stored numbers."""
        reduced = self.shortened(vectors)
        if self.dtype == "float16":
            reduced = reduced.astype(np.float16)
        elif self.dtype in SCALED:
            assert self.scales is not None
            low, high = self.scales.low, self.scales.high
            reduced = np.rint((reduced - low) / (high - low) * 255).clip(0, 255)
        elif self.dtype in PACKED:
            reduced = np.packbits(reduced > 0, axis=1)
        if self.dtype in ("int8", "binary"):
            reduced = (reduced.astype(np.int16) - INT8_OFFSET).astype(np.int8)
        elif self.dtype in ("uint8", "ubinary"):
            reduced = reduced.astype(np.uint8)
        values = pa.array(reduced.ravel(), STORED[self.dtype])
        return pa.FixedSizeListArray.from_arrays(values, reduced.shape[1])

    @property
    def arrow_type(self) -> pa.DataType:
        """Type of the stored column."""
        width = self.dimensions // 8 if self.dtype in PACKED else self.dimensions
        return pa.list_(STORED[self.dtype], width)

    @classmethod
    def of(cls, model_dimensions: int, dimensions: int | None, dtype: VectorType) -> "Reduction":
        """The reduction to `dimensions` (default: all) and `dtype`.

        Raises:
            InputError: if the model has fewer dimensions, or `binary` or `ubinary` cannot fill their bytes.
        """
        kept = dimensions or model_dimensions
        if not 1 <= kept <= model_dimensions:
            raise InputError(
                f"dimensions {kept}: the model's embeddings have {model_dimensions}; "
                f"allowed: 1 to {model_dimensions}"
            )
        if dtype in PACKED and kept % 8:
            raise InputError(f"dtype {dtype}: {kept} dimensions do not fill bytes; allowed: multiples of 8")
        return cls(kept, dtype)


def restore(stored: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """[n, d] float32 from [n, d] int8 or uint8, exact to half a step; `low` and `high` are in the record."""
    steps = stored.astype(np.float32) + (INT8_OFFSET if stored.dtype == np.int8 else 0)
    return (steps / 255 * (high - low) + low).astype(np.float32)

"""Reduction of embeddings before they are stored: fewer dimensions, smaller numbers."""

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from boom_ray.embed.embed_options import VectorType
from boom_ray.errors import InputError

STORED = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}


@dataclass(frozen=True)
class Scales:
    """The range of each dimension, which `int8` divides into 255 steps.

    Attributes:
        low: [dimensions] float32, the value stored as -128.
        high: [dimensions] float32, the value stored as 127.
    """

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def from_lists(cls, low: list[float], high: list[float]) -> "Scales":
        """From numbers as JSON holds them."""
        return cls(np.array(low, dtype=np.float32), np.array(high, dtype=np.float32))

    def to_lists(self) -> dict[str, list[float]]:
        """As records and `calibration.json` hold them."""
        return {"low": self.low.tolist(), "high": self.high.tolist()}

    @classmethod
    def from_json(cls, content: bytes) -> "Scales":
        """From the content of `calibration.json`."""
        return cls.from_lists(**json.loads(content))

    def to_json(self) -> bytes:
        """The content of `calibration.json`."""
        return json.dumps(self.to_lists()).encode()


@dataclass(frozen=True)
class Reduction:
    """From [n, d] float32 of norm 1 to the stored numbers.

    Attributes:
        dimensions: Leading dimensions that are kept.
        dtype: `int8` divides the range of each dimension into 255 steps; `binary` keeps signs, eight in a
            byte.
        scales: The ranges for `int8`.
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
        elif self.dtype == "int8":
            assert self.scales is not None
            low, high = self.scales.low, self.scales.high
            steps = np.rint((reduced - low) / (high - low) * 255 - 128)
            reduced = steps.clip(-128, 127).astype(np.int8)
        elif self.dtype == "binary":
            reduced = np.packbits(reduced > 0, axis=1)
        values = pa.array(reduced.ravel(), STORED[self.dtype])
        return pa.FixedSizeListArray.from_arrays(values, reduced.shape[1])

    @classmethod
    def of(cls, model_dimensions: int, dimensions: int | None, dtype: VectorType) -> "Reduction":
        """The reduction to `dimensions` (default: all) and `dtype`.

        Raises:
            InputError: if the model has fewer dimensions, or `binary` cannot fill its bytes.
        """
        kept = dimensions or model_dimensions
        if not 1 <= kept <= model_dimensions:
            raise InputError(
                f"dimensions {kept}: the model's embeddings have {model_dimensions}; "
                f"allowed: 1 to {model_dimensions}"
            )
        if dtype == "binary" and kept % 8:
            raise InputError(f"dtype binary: {kept} dimensions do not fill bytes; allowed: multiples of 8")
        return cls(kept, dtype)


def restore(stored: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """[n, d] float32 from [n, d] int8, exact to half a step; `low` and `high` are in the record."""
    return ((stored.astype(np.float32) + 128) / 255 * (high - low) + low).astype(np.float32)

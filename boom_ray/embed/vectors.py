"""The numbers that are written: whole or shortened embeddings, in full or reduced precision."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from boom_ray.embed.options import VectorType
from boom_ray.errors import BoomError

STORED = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}


@dataclass(frozen=True)
class Reduction:
    """From [n, d] float32 of norm 1 to what is stored.

    Attributes:
        dimensions: Numbers kept.
        dtype: `int8` spreads the range of each number over 256 steps; `binary` keeps signs, eight in a byte.
        low: [dimensions] float32, the value that `int8` stores as -128.
        high: [dimensions] float32, the value that it stores as 127.
    """

    dimensions: int
    dtype: VectorType
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def shortened(self, vectors: np.ndarray) -> np.ndarray:
        """The first numbers of each row, with norm 1 again."""
        if self.dimensions == vectors.shape[1]:
            return vectors
        cut = vectors[:, : self.dimensions]
        return cut / np.linalg.norm(cut, axis=1, keepdims=True).clip(min=1e-12)

    def calibrated(self, sample: np.ndarray) -> "Reduction":
        """The same with the range of each number in a sample of [n, d] embeddings."""
        cut = self.shortened(sample)
        low, high = cut.min(0), cut.max(0)
        return Reduction(self.dimensions, self.dtype, low, np.maximum(high, low + 1e-6))

    def __call__(self, vectors: np.ndarray) -> pa.FixedSizeListArray:
        """[n] lists of stored numbers."""
        cut = self.shortened(vectors)
        if self.dtype == "float16":
            cut = cut.astype(np.float16)
        elif self.dtype == "int8":
            assert self.low is not None and self.high is not None
            steps = np.rint((cut - self.low) / (self.high - self.low) * 255 - 128)
            cut = steps.clip(-128, 127).astype(np.int8)
        elif self.dtype == "binary":
            cut = np.packbits(cut > 0, axis=1)
        return pa.FixedSizeListArray.from_arrays(pa.array(cut.ravel(), STORED[self.dtype]), cut.shape[1])

    @classmethod
    def of(cls, own: int, dimensions: int | None, dtype: VectorType) -> "Reduction":
        """The reduction a user asks for, of a model with embeddings of length `own`.

        Raises:
            BoomError: if the model has fewer dimensions, or `binary` cannot fill its bytes.
        """
        kept = dimensions or own
        if not 1 <= kept <= own:
            raise BoomError(f"--dimensions {kept}: the model's embeddings have {own}; allowed: 1 to {own}")
        if dtype == "binary" and kept % 8:
            raise BoomError(f"--dtype binary: {kept} dimensions do not fill bytes; allowed: multiples of 8")
        return cls(kept, dtype)


def restore(stored: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """[n, d] float32 from `int8`, up to half a step: how a reader uses the scales in the record."""
    return ((stored.astype(np.float32) + 128) / 255 * (high - low) + low).astype(np.float32)

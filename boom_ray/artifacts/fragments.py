"""Fragments of tensors in safetensors files: written by any number of processes, read by any other.

A fragment is a range of a flattened float32 tensor. It is stored as the tensor `NAME@START`, so that the
headers of all files together say where each element is.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from boom_ray.artifacts.tensors import TensorPlace, read_header
from boom_ray.errors import StorageError
from boom_ray.storage import RangeReader

ELEMENT_BYTES = 4


def stored_name(name: str, start: int) -> str:
    """Name of a fragment in its file."""
    return f"{name}@{start}"


class StoredFragment(NamedTuple):
    """A fragment in a file.

    Attributes:
        start: Its first element within the tensor.
    """

    start: int
    place: TensorPlace

    @property
    def end(self) -> int:
        """The element behind its last."""
        return self.start + self.place.num_elements


class FragmentReader:
    """Reads ranges of tensors from the files that hold their fragments; from any number of threads at once.

    Args:
        uris: The safetensors files.

    Attributes:
        sizes: Number of elements of each tensor.

    Raises:
        StorageError: if a file is damaged, or the fragments of a tensor have gaps or overlap.
    """

    def __init__(self, uris: Iterable[str]) -> None:
        self._files: dict[str, RangeReader] = {}
        self._fragments: dict[str, list[StoredFragment]] = {}
        for uri in uris:
            self._files[uri] = RangeReader(uri)
            for stored, place in read_header(uri).items():
                name, _, start = stored.rpartition("@")
                self._fragments.setdefault(name, []).append(StoredFragment(int(start), place))
        self.sizes = {name: self._checked_size(name) for name in self._fragments}

    def _checked_size(self, name: str) -> int:
        end, fragments = 0, self._fragments[name]
        fragments.sort(key=lambda fragment: fragment.start)
        for fragment in fragments:
            if fragment.start != end:
                raise StorageError(
                    f"{fragment.place.uri}: the fragment of {name} begins at element {fragment.start}; "
                    f"expected {end}, where others end. Delete this checkpoint"
                )
            end = fragment.end
        return end

    def read(self, name: str, start: int, count: int) -> np.ndarray:
        """[count] float32, elements of a tensor from `start` on.

        Raises:
            StorageError: if they are not stored, or cannot be read.
        """
        end = start + count
        if end > self.sizes.get(name, 0):
            raise StorageError(
                f"{', '.join(self._files)}: elements {start} to {end} of {name} are not stored; "
                f"stored are {self.sizes.get(name, 0)}. Delete this checkpoint"
            )
        values = np.empty(count, np.float32)
        for fragment in self._fragments[name]:
            low, high = max(start, fragment.start), min(end, fragment.end)
            if low < high:
                target = values[low - start : high - start].data.cast("B")
                offset = fragment.place.offset + ELEMENT_BYTES * (low - fragment.start)
                self._files[fragment.place.uri].read_into(target, offset)
        return values

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> "FragmentReader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

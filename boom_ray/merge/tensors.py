"""Safetensors over URIs: headers and ranges are read, never whole files; shards are written as a stream."""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import torch
import xxhash
from torch import Tensor

from boom_ray import storage
from boom_ray.artifact import FileEntry, TensorEntry
from boom_ray.errors import BoomError

DTYPES = {
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
NAMES = {dtype: name for name, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"
DAMAGED = "Fetch or publish the model again"


@dataclass(frozen=True)
class TensorPlace:
    """Where one tensor lies.

    Attributes:
        file: Name of the safetensors file within the model.
        dtype: A safetensors name.
        offset: Of the first byte, from the start of the file.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return DTYPES[self.dtype].itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return self.num_elements * self.element_bytes

    @property
    def is_floating(self) -> bool:
        """Whether the tensor can be averaged."""
        return DTYPES[self.dtype].is_floating_point


def read_places(model: str) -> dict[str, TensorPlace]:
    """Where every tensor of a model lies, from the headers of its files.

    Raises:
        BoomError: if the model has no safetensors files, or one is truncated or not what it should be.
    """
    names = storage.list_names(model)
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if INDEX in names:
        files = _listed_files(storage.join(model, INDEX))
    if not files:
        raise BoomError(
            f"{model}: no safetensors weights there. Pickled weights (.bin, .pt) are never loaded"
        )
    places: dict[str, TensorPlace] = {}
    for file in files:
        places |= _read_header(model, file)
    return places


def _listed_files(uri: str) -> list[str]:
    try:
        return sorted(set(json.loads(storage.read_bytes(uri))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BoomError(f"{uri}: not an index of safetensors files. {DAMAGED}") from error


def _read_header(model: str, file: str) -> dict[str, TensorPlace]:
    uri = storage.join(model, file)
    with storage.open_input(uri) as source, _explained(uri):
        size = source.size()
        length = int.from_bytes(source.read_at(8, 0), "little") if size >= 8 else 0
        if not 2 <= length <= size - 8:
            raise BoomError(f"{uri}: truncated or not a safetensors file. {DAMAGED}")
        text = source.read_at(length, 8)
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        places = {name: _place(file, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BoomError(f"{uri}: its header is damaged: {error}. {DAMAGED}") from error
    _check_layout(uri, places, 8 + length, size)
    return places


def _place(file: str, entry: dict[str, Any], data_start: int) -> TensorPlace:
    dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype}; allowed: {', '.join(DTYPES)}")
    place = TensorPlace(file, dtype, shape, data_start + start)
    if min(shape, default=0) < 0 or end - start != place.num_bytes:
        raise ValueError(f"{end - start} bytes for a tensor of shape {list(shape)} and dtype {dtype}")
    return place


def _check_layout(uri: str, places: dict[str, TensorPlace], data_start: int, size: int) -> None:
    """Tensors follow one another without gap or overlap up to the end of the file, as the format has it."""
    end = data_start
    for name, place in sorted(places.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if place.offset != end:
            raise BoomError(
                f"{uri}: its header is damaged: tensor {name} does not start at byte {end}. {DAMAGED}"
            )
        end += place.num_bytes
        if end > size:
            raise BoomError(f"{uri}: truncated: tensor {name} ends at byte {end} of {size}. {DAMAGED}")
    if end != size:
        raise BoomError(f"{uri}: {size} bytes, of which its header accounts for {end}. {DAMAGED}")


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Name the file that a read or a write fails on."""
    try:
        yield
    except OSError as error:
        reason = str(error).split(". Detail:")[0]
        raise BoomError(
            f"{uri}: storage failed: {reason}. Is the disk full? Run the command again"
        ) from error


def align(base: dict[str, TensorPlace], names: Iterable[str]) -> dict[str, TensorPlace] | None:
    """The base's tensors under the models' names.

    A checkpoint from a hub may hold its transformer under a prefix (`model.`, `bert.`) beside a head that
    embedding models do not have.

    Returns:
        name -> place, or None if no single prefix covers all names.
    """
    wanted = sorted(names)
    prefixes = {name[: -len(wanted[0])] for name in base if name.endswith(wanted[0])}
    for prefix in sorted(prefixes, key=lambda prefix: (len(prefix), prefix)):
        if all(prefix + name in base for name in wanted):
            return {name: base[prefix + name] for name in wanted}
    return None


class TensorReader:
    """Reads ranges of a model's tensors; files are opened once."""

    def __init__(self, model: str, places: dict[str, TensorPlace]) -> None:
        self.model, self.places = model, places
        self._files: dict[str, pa.NativeFile] = {}

    def read(self, name: str, start: int, count: int) -> tuple[Tensor, memoryview]:
        """`count` elements from element `start` on.

        Returns:
            [count] in the tensor's dtype, and the bytes it is a view of.
        """
        place = self.places[name]
        if place.file not in self._files:
            self._files[place.file] = storage.open_input(storage.join(self.model, place.file))
        width = place.element_bytes
        with _explained(storage.join(self.model, place.file)):
            content = self._files[place.file].read_at(count * width, place.offset + start * width)
        if len(content) != count * width:
            raise BoomError(
                f"{storage.join(self.model, place.file)}: tensor {name} could not be read to its end"
            )
        # A bytearray because torch has no read-only tensors; the copy is a fraction of the read.
        return torch.frombuffer(bytearray(content), dtype=DTYPES[place.dtype]), memoryview(content)


class ShardWriter:
    """Writes one safetensors file front to back: the header, then every tensor in the order declared.

    Args:
        uri: Of the file.
        tensors: name -> (torch dtype, shape), in the order they will be written.
    """

    def __init__(self, uri: str, tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self.uri, self._names, self._dtypes = uri, iter(tensors), tensors
        self.entries: dict[str, TensorEntry] = {}
        self._file = storage.open_output(uri)
        self._hash, self._size = xxhash.xxh3_128(), 0
        self._write(_header(tensors))

    def write(self, name: str, pieces: Iterator[Tensor]) -> None:
        """Write the next tensor, piece by piece."""
        assert name == next(self._names), f"{name} is not the next tensor"
        own = xxhash.xxh3_128()
        for piece in pieces:
            content = memoryview(cast(Any, piece.contiguous().view(torch.uint8).numpy()))
            own.update(content)
            self._write(content)
        dtype, shape = self._dtypes[name]
        self.entries[name] = TensorEntry(dtype=NAMES[dtype], shape=list(shape), xxh3_128=own.hexdigest())

    def close(self) -> FileEntry:
        """Finish the file; returns its size and hash."""
        with _explained(self.uri):
            self._file.close()
        return FileEntry(size=self._size, xxh3_128=self._hash.hexdigest())

    def _write(self, content: bytes | memoryview) -> None:
        self._hash.update(content)
        with _explained(self.uri):
            self._file.write(content)
        self._size += len(content)


def _header(tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight, as the format's own writer has it
    return len(text).to_bytes(8, "little") + text

"""Safetensors over URIs: the headers of a model's files, without their tensors."""

import json
import math
import os
from dataclasses import dataclass
from typing import Any

from boom_ray import storage
from boom_ray.errors import InputError, StorageError

FLOATING = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes per element, by safetensors name
OTHER = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
ELEMENT_BYTES = FLOATING | OTHER
NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # dtypes that models are written in
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DAMAGED = "Fetch or publish the model again"


@dataclass(frozen=True)
class TensorPlace:
    """The location of one tensor.

    Attributes:
        uri: The safetensors file.
        name: Name of the tensor in that file.
        dtype: A safetensors name.
        offset: First byte, from the start of the file.
    """

    uri: str
    name: str
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
        return ELEMENT_BYTES[self.dtype]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return self.num_elements * self.element_bytes

    @property
    def is_floating(self) -> bool:
        """Whether the tensor can be averaged."""
        return self.dtype in FLOATING


def read_places(model: str) -> dict[str, TensorPlace]:
    """The location of every tensor of a model, from the headers of the files that transformers loads.

    Args:
        model: URI of a directory, or of one safetensors file.

    Raises:
        InputError: if the model has no safetensors files.
        StorageError: if one is truncated or damaged.
    """
    if model.endswith(".safetensors"):
        return read_header(model)
    names = storage.list_names(model)
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if SINGLE in names:
        files = [SINGLE]
    elif INDEX in names:
        files = _listed_files(storage.join(model, INDEX))
    if not files:
        raise InputError(f"{model}: no safetensors weights. Pickled weights (.bin, .pt) are never loaded")
    places: dict[str, TensorPlace] = {}
    for file in files:
        places |= read_header(storage.join(model, file))
    return places


def _listed_files(uri: str) -> list[str]:
    try:
        names = sorted(set(json.loads(storage.read_bytes(uri))["weight_map"].values()))
        if not all(os.path.basename(name) == name for name in names):
            raise ValueError("a file of another directory")
        return names
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(f"{uri}: not an index of safetensors files. {DAMAGED}") from error


def read_header(uri: str) -> dict[str, TensorPlace]:
    """The tensors of one file.

    Raises:
        StorageError: if the header is damaged, or does not account for every byte of the file.
    """
    with storage.open_input(uri) as source, storage.explained(uri):
        size = source.size()
        length = int.from_bytes(source.read_at(8, 0), "little") if size >= 8 else 0
        if not 2 <= length <= size - 8:
            raise StorageError(f"{uri}: truncated or not a safetensors file. {DAMAGED}")
        text = source.read_at(length, 8)
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        places = {name: _place(uri, name, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(f"{uri}: its header is damaged: {error}. {DAMAGED}") from error
    _check_layout(uri, places, 8 + length, size)
    return places


def _place(uri: str, name: str, entry: dict[str, Any], data_start: int) -> TensorPlace:
    dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in ELEMENT_BYTES:
        raise ValueError(f"dtype {dtype}; allowed: {', '.join(ELEMENT_BYTES)}")
    if not all(type(number) is int for number in (*shape, start, end)):
        raise ValueError(f"tensor {name} has a shape or an offset that is not a whole number")
    place = TensorPlace(uri, name, dtype, shape, data_start + start)
    if min(shape, default=0) < 0 or end - start != place.num_bytes:
        raise ValueError(f"{end - start} bytes for a tensor of shape {list(shape)} and dtype {dtype}")
    return place


def _check_layout(uri: str, places: dict[str, TensorPlace], data_start: int, size: int) -> None:
    """Check that tensors follow one another without gap or overlap up to the end of the file."""
    end = data_start
    for name, place in sorted(places.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if place.offset != end:
            raise StorageError(
                f"{uri}: its header is damaged: tensor {name} does not start at byte {end}. {DAMAGED}"
            )
        end += place.num_bytes
        if end > size:
            raise StorageError(f"{uri}: truncated: tensor {name} ends at byte {end} of {size}. {DAMAGED}")
    if end != size:
        raise StorageError(f"{uri}: {size} bytes, of which its header accounts for {end}. {DAMAGED}")


def create_file(uri: str, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Create a local file with its header, sized for its tensors."""
    content, _ = header(tensors)
    size = sum(math.prod(shape) * ELEMENT_BYTES[dtype] for dtype, shape in tensors.values())
    with storage.explained(uri), storage.open_output(uri) as file:
        file.write(content)
    with storage.explained(uri):
        os.truncate(uri, len(content) + size)


def header(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, int]]:
    """The header of a file that holds tensors in the order given.

    Args:
        tensors: name -> (safetensors dtype, shape).

    Returns:
        The first bytes of the file, and the offset of each tensor from its start.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * ELEMENT_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight, as in the format's own writer
    content = len(text).to_bytes(8, "little") + text
    return content, {name: len(content) + entries[name]["data_offsets"][0] for name in tensors}

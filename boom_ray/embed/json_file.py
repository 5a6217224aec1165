"""Reader of JSON files: columns from the values of a few rows at a time."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from boom_ray.data import rows
from boom_ray.data.training_row import BadRow
from boom_ray.embed.batch import Columns, RowBatch, gathered, is_unicode
from boom_ray.errors import InputError


def first_row(uri: str) -> dict[str, pa.DataType | None] | None:
    """Keys of the first row of a file, with the types of their values; None if the file has no rows."""
    first = next(rows.read_raw(uri), None)
    return first and {key: _type_of(value) for key, value in _usable(*first).items()}


def _type_of(value: Any) -> pa.DataType | None:
    try:
        return pa.array([value]).type
    except (pa.ArrowException, ValueError, OverflowError):  # the row is reported when it is read
        return None


def json_batches(uri: str, columns: Columns) -> Iterator[RowBatch]:
    """The rows of a file; an id or a text of another type, or that parquet cannot store, is null."""
    raw = ((location, _usable(location, row)) for location, row in rows.read_raw(uri))
    for batch in gathered(raw, lambda pair: len(str(pair[1].get(columns.text))), columns.batch_rows):
        usable = [row for _, row in batch]
        names = dict.fromkeys(key for row in usable for key in row)
        read = {}
        for name in columns.names:
            values = [row.get(name) for row in usable]
            if name == columns.text:
                read[name] = pa.array([_valid(value, pa.string()) for value in values], pa.string())
            elif name == columns.id:
                read[name] = pa.array([_valid(value, columns.id_type) for value in values], columns.id_type)
            elif name in names:
                read[name] = _inferred(name, values, [location for location, _ in batch])
        numbers = [int(location.rpartition(":")[2]) for location, _ in batch]
        yield RowBatch({name: read[name] for name in read if name in names}, numbers, names)


def _usable(location: str, row: dict[str, Any] | BadRow) -> dict[str, Any]:
    if isinstance(row, BadRow):
        raise InputError(f"{location}: {row}")
    return row


def _valid(value: Any, wanted: pa.DataType) -> Any:
    """An id or a text if it is of its column's type and parquet can store it, else None."""
    if pa.types.is_string(wanted):
        return value if isinstance(value, str) and (value.isascii() or is_unicode(value)) else None
    # `type`, since a bool is an instance of int
    return value if type(value) is int and -(1 << 63) <= value < 1 << 63 else None


def _inferred(name: str, values: list[Any], locations: list[str]) -> pa.Array:
    """Values as an array of the smallest type that holds all of them."""
    try:
        return pa.array(values)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        bad = next(index for index in range(len(values)) if not _agree(values[: index + 1]))
        raise InputError(
            f"{locations[bad]}: {name!r} is {repr(values[bad])[:80]}, which cannot be stored with the values "
            f"before it: {error}. Write all values of a column as one type, for example as text"
        ) from error


def _agree(values: list[Any]) -> bool:
    try:
        pa.array(values)
    except (pa.ArrowException, ValueError, OverflowError):
        return False
    return True

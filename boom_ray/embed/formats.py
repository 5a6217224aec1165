"""Readers of parquet, JSON, CSV and text files: batches of a few rows, each column in the type of its values.

An id or a text that is not one becomes null, so that one pass can count all bad rows. Any other value that
cannot be read is an error: a column that is carried along loses nothing.
"""

import csv
import io
import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from boom_ray import storage
from boom_ray.data import rows
from boom_ray.data.source_files import SourceFile, open_stream, reading
from boom_ray.embed import value_types
from boom_ray.errors import InputError

BATCH_ROWS = 64
DELIMITERS = ",;\t|"
csv.field_size_limit(sys.maxsize)  # a text may be long


@dataclass(frozen=True)
class Columns:
    """The columns to read.

    Attributes:
        text: Column of texts.
        id: Column of ids; None: rows have none.
        id_type: string, or an integer type.
        others: Columns that are copied, or that the filter names.
    """

    text: str
    id: str | None
    id_type: pa.DataType
    others: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys([self.text, *([self.id] if self.id else []), *self.others]))


@dataclass
class Batch:
    """Consecutive rows of a file.

    Attributes:
        columns: Values of the wanted columns that the rows have.
        numbers: Number of each row in its file: of its line in JSON lines and text files.
        names: Names of columns that the rows have, wanted or not.
    """

    columns: dict[str, pa.Array]
    numbers: list[int]
    names: Iterable[str] = field(default_factory=list)


def row_groups(uri: str) -> list[int]:
    """Rows of each row group of a parquet file."""
    with reading(uri), _parquet(uri) as file:
        return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def header(file: SourceFile, text_column: str) -> dict[str, pa.DataType | None] | None:
    """Names of the columns of a file, with their types if it states them; None if it has no rows.

    JSON has no header: these are the keys and types of the first row.

    Raises:
        InputError: if the file is damaged.
    """
    with reading(file.uri):
        if file.format == "parquet":
            with _parquet(file.uri) as opened:
                schema = opened.schema_arrow
            return dict(zip(schema.names, schema.types, strict=True))
        if file.format == "csv":
            with _CsvReader(file.uri, text_column) as (names, _):
                return dict.fromkeys(names, pa.string()) if names else None
        if file.format == "text":
            return {text_column: pa.string()}
        first = next(rows.read_raw(file.uri), None)
        return first and {key: _type_of(value) for key, value in _usable(*first).items()}


def _type_of(value: Any) -> pa.DataType | None:
    try:
        return pa.array([value]).type
    except (pa.ArrowException, ValueError, OverflowError):  # the row is reported when it is read
        return None


def batches(file: SourceFile, row_group: int | None, first: int, columns: Columns) -> Iterator[Batch]:
    """The rows of a file.

    Args:
        row_group: The row group to read of a parquet file; None for other formats.
        first: Number of the first row of the row group in its file.

    Raises:
        InputError: if the file is damaged, or a value cannot be carried along.
        NotFoundError: if it does not exist.
        StorageError: if the store fails.
    """
    with reading(file.uri):
        if file.format == "parquet":
            yield from _parquet_batches(file.uri, row_group, first, columns)
        elif file.format == "csv":
            yield from _csv_batches(file.uri, columns)
        elif file.format == "text":
            yield from _text_batches(file.uri, columns)
        else:
            yield from _json_batches(file.uri, columns)


def _parquet(uri: str) -> pq.ParquetFile:
    return pq.ParquetFile(storage.open_input(uri), pre_buffer=True)


def _parquet_batches(uri: str, row_group: int | None, first: int, columns: Columns) -> Iterator[Batch]:
    with _parquet(uri) as file:
        names = file.schema_arrow.names
        repeated = [name for name in columns.names if names.count(name) > 1]
        if repeated:
            raise InputError(f"{uri}: several columns have the name {', '.join(repeated)}. Rename them")
        wanted = [name for name in columns.names if name in names]
        # A name with a dot also selects columns inside others: what was not asked for is left out below.
        found = file.iter_batches(BATCH_ROWS, row_groups=[row_group], columns=wanted)
        for batch in found:
            read = {name: _plain(uri, name, batch, columns) for name in wanted}
            yield Batch(read, list(range(first, first + len(batch))), names)
            first += len(batch)


def _plain(uri: str, name: str, batch: pa.RecordBatch, columns: Columns) -> pa.Array:
    """A column of a batch in a type that all readers know; invalid UTF-8 in ids and texts is null."""
    column = batch.column(name)
    try:
        column.validate(full=True)
        return column.cast(value_types.plain(column.type))
    except pa.ArrowInvalid as error:
        if not value_types.is_text(column.type) or name in columns.others:
            raise InputError(f"{uri}: column {name!r} holds values that cannot be read: {error}") from error
    values = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    values = values.cast(pa.binary())
    return pa.array([_decoded(value) for value in values.to_pylist()], pa.string())


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _csv_batches(uri: str, columns: Columns) -> Iterator[Batch]:
    with _CsvReader(uri, columns.text) as (names, records):
        repeated = [name for name in columns.names if names.count(name) > 1]
        if repeated:
            raise InputError(f"{uri}: several columns have the name {', '.join(repeated)}. Rename them")
        indices = {name: names.index(name) for name in columns.names if name in names}
        number = 1
        while batch := list(itertools.islice(records, BATCH_ROWS)):
            for offset, record in enumerate(batch):
                if len(record) != len(names):
                    raise InputError(
                        f"{uri}: row {number + offset} has {len(record)} cells; the header has {len(names)}. "
                        "Quote cells that contain the delimiter"
                    )
            read = {}
            for name, index in indices.items():
                cells = [_cell(record[index]) for record in batch]
                if name in columns.others and None in cells:
                    raise InputError(f"{uri}: column {name!r} holds invalid UTF-8 in row "
                                     f"{number + cells.index(None)}. Write it as UTF-8")  # fmt: skip
                # An empty id is no id.
                read[name] = pa.array(
                    [cell or None for cell in cells] if name == columns.id else cells, pa.string()
                )
            yield Batch(read, list(range(number, number + len(batch))), names)
            number += len(batch)


class _CsvReader:
    """The header and the records of a CSV file, as a context."""

    def __init__(self, uri: str, text_column: str) -> None:
        self.uri, self.text_column = uri, text_column

    def __enter__(self) -> tuple[list[str], Iterator[list[str]]]:
        self.stream = io.TextIOWrapper(
            open_stream(self.uri), encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        lines = iter(self.stream)
        first = next((line for line in lines if line.strip()), "")
        delimiter = self._delimiter(first)
        records = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
        filled = (record for record in records if record)
        return next(filled, []), filled

    def _delimiter(self, line: str) -> str:
        """The delimiter with which the header names the text column; else the one that names most columns."""
        headers = {delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in DELIMITERS}
        return max(
            headers, key=lambda delimiter: (self.text_column in headers[delimiter], len(headers[delimiter]))
        )

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def _cell(text: str) -> str | None:
    return text if text.isascii() or _is_unicode(text) else None


def _text_batches(uri: str, columns: Columns) -> Iterator[Batch]:
    """Non-empty lines of a text file."""
    with open_stream(uri) as stream:
        lines = ((number, line) for number, line in enumerate(stream, start=1) if line.strip())
        while batch := list(itertools.islice(lines, BATCH_ROWS)):
            texts = [
                _decoded(line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"")) for number, line in batch
            ]
            values = pa.array([text and text.rstrip("\r\n") for text in texts], pa.string())
            yield Batch({columns.text: values}, [number for number, _ in batch], [columns.text])


def _json_batches(uri: str, columns: Columns) -> Iterator[Batch]:
    raw = rows.read_raw(uri)
    while batch := list(itertools.islice(raw, BATCH_ROWS)):
        usable = [_usable(location, row) for location, row in batch]
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
        yield Batch({name: read[name] for name in read if name in names}, numbers, names)


def _usable(location: str, row: dict[str, Any] | rows.BadRow) -> dict[str, Any]:
    if isinstance(row, rows.BadRow):
        raise InputError(f"{location}: {row}")
    return row


def _valid(value: Any, wanted: pa.DataType) -> Any:
    """An id or a text if it is of its column's type and parquet can store it, else None."""
    if pa.types.is_string(wanted):
        return value if isinstance(value, str) and (value.isascii() or _is_unicode(value)) else None
    # `type`, since a bool is an instance of int
    return value if type(value) is int and -(1 << 63) <= value < 1 << 63 else None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can contain it, UTF-8 cannot
        return False
    return True


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

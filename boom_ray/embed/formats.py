"""Readers of parquet, jsonl, csv and text files: tables of a few rows with a fixed schema.

A value that is not of its column's type becomes null, so that one pass can count all bad rows.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from boom_ray import storage
from boom_ray.data import rows
from boom_ray.embed.embed_options import EmbedOptions
from boom_ray.errors import InputError

SUFFIXES = (*rows.SUFFIXES, ".csv", ".txt")
BATCH_ROWS = 64
JSON_TYPES = {int: pa.int64(), str: pa.string(), float: pa.float64(), bool: pa.bool_()}


def is_parquet(uri: str) -> bool:
    """Whether a file is parquet, by its name."""
    return uri.endswith(".parquet")


def is_text(data_type: pa.DataType) -> bool:
    """Whether values of a type are strings."""
    return pa.types.is_string(data_type) or pa.types.is_large_string(data_type)


def num_row_groups(uri: str) -> int:
    """Row groups of a parquet file."""
    with _parquet(uri) as file:
        return file.num_row_groups


def columns_of(source: str, files: list[str], options: EmbedOptions) -> dict[str, pa.DataType]:
    """Names and types of the columns of files; without a schema, those of the first row.

    Raises:
        InputError: if the first file is damaged, or no file contains a row.
    """
    first = files[0]
    if is_parquet(first):
        with _parquet(first) as file:
            schema = file.schema_arrow
        return dict(zip(schema.names, schema.types, strict=True))
    if first.endswith(".csv"):
        with storage.open_input(first) as handle, _named(first), pa.csv.open_csv(handle) as reader:
            return dict(zip(reader.schema.names, reader.schema.types, strict=True))
    if first.endswith(".txt"):
        return {options.id_column: pa.string(), options.text_column: pa.string()}
    row = next(itertools.chain.from_iterable(map(rows.read_raw, files)), None)
    if row is None:
        raise InputError(f"{source}: contains no rows")
    return {key: JSON_TYPES.get(type(value), pa.null()) for key, value in _usable(*row).items()}


def read_tables(uri: str, row_group: int | None, schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of the columns in `schema`, whose first two are the id and the text.

    Args:
        row_group: The row group to read of a parquet file; None for other formats.

    Raises:
        InputError: if the file is damaged, or lacks a column.
    """
    if is_parquet(uri):
        yield from _parquet_tables(uri, row_group, schema)
    elif uri.endswith(".csv"):
        yield from _csv_tables(uri, schema)
    elif uri.endswith(".txt"):
        yield from _row_tables(_lines(uri, *schema.names[:2]), schema)
    else:
        yield from _row_tables(rows.read_raw(uri), schema)


@contextmanager
def _named(uri: str) -> Iterator[None]:
    """Turn an error of pyarrow into one sentence that names the file."""
    try:
        yield
    except pa.ArrowException as error:
        form, reason = uri.rpartition(".")[2], str(error).splitlines()[0]
        raise InputError(f"{uri}: not a readable {form} file: {reason}") from error


def _parquet(uri: str) -> pq.ParquetFile:
    with _named(uri):
        return pq.ParquetFile(storage.open_input(uri), pre_buffer=True)


def _parquet_tables(uri: str, row_group: int | None, schema: pa.Schema) -> Iterator[pa.Table]:
    with _parquet(uri) as file, _named(uri):
        missing = set(schema.names) - set(file.schema_arrow.names)
        if missing:
            raise InputError(f"{uri}: no column {', '.join(sorted(missing))}, which the first file has")
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[row_group], columns=schema.names):
            yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)


def _csv_tables(uri: str, schema: pa.Schema) -> Iterator[pa.Table]:
    convert = pa.csv.ConvertOptions(
        column_types=schema, include_columns=schema.names, strings_can_be_null=False
    )
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    with (
        storage.open_input(uri) as handle,
        _named(uri),
        pa.csv.open_csv(handle, parse_options=parse, convert_options=convert) as reader,
    ):
        for batch in reader:
            for start in range(0, len(batch), BATCH_ROWS):
                yield pa.Table.from_batches([batch.slice(start, BATCH_ROWS)])


def _lines(uri: str, id_column: str, text_column: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Non-empty lines of a text file; the id is `file:line`."""
    with storage.open_input(uri) as handle:
        for number, line in enumerate(rows.buffered(handle), start=1):
            if line.strip():
                location = f"{storage.name_of(uri)}:{number}"
                # Invalid UTF-8 becomes surrogates, which `_valid` turns into null and the survey reports.
                text = line.decode(errors="surrogateescape").rstrip("\r\n")
                yield location, {id_column: location, text_column: text}


def _row_tables(raw: Iterator[tuple[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    while batch := list(itertools.islice(raw, BATCH_ROWS)):
        usable = [_usable(location, row) for location, row in batch]
        columns = [[_valid(row.get(field.name), field.type) for row in usable] for field in schema]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        yield pa.table(arrays, schema=schema)


def _usable(location: str, row: dict[str, Any] | rows.BadRow) -> dict[str, Any]:
    if isinstance(row, rows.BadRow):
        raise InputError(f"{location}: {row}")
    return row


def _valid(value: Any, wanted: pa.DataType) -> Any:
    """The value if it is of its column's type and parquet can store it, else None."""
    if pa.types.is_string(wanted):
        return value if isinstance(value, str) and (value.isascii() or _is_unicode(value)) else None
    if pa.types.is_integer(wanted):  # `type`, since a bool is an instance of int
        return value if type(value) is int and -(1 << 63) <= value < 1 << 63 else None
    if pa.types.is_floating(wanted):
        return float(value) if isinstance(value, int | float) else None
    return value if pa.types.is_boolean(wanted) and isinstance(value, bool) else None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can contain it, UTF-8 cannot
        return False
    return True

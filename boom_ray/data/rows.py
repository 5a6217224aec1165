"""Rows in files: read one by one, each with its location, or with the reason why it cannot be read."""

import codecs
import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from boom_ray import storage
from boom_ray.data import source_files
from boom_ray.data.source_files import format_of, open_stream, reading
from boom_ray.data.training_row import BadRow
from boom_ray.errors import InputError


def data_files(uri: str) -> list[str]:
    """The parquet and JSON files at a URI, sorted.

    Args:
        uri: One file, a directory with everything below it, or a pattern of file names (`…/data/nq-*`).

    Raises:
        NotFoundError: if there are none.
        InputError: if there are data files that cannot be read, such as archives.
    """
    return [file.uri for file in source_files.find(uri, ("parquet", "jsonl"))]


def count_rows(uri: str) -> int:
    """Number of rows of a file, good or bad, from its metadata or its line breaks.

    Raises:
        InputError: if it is damaged.
    """
    if format_of(storage.name_of(uri)) == "parquet":
        with reading(uri), storage.open_input(uri) as file:
            return _parquet(uri, file).metadata.num_rows
    with reading(uri), open_stream(uri) as lines:
        if not _begins_array(lines):
            return sum(1 for line in lines if line.strip())
    return sum(1 for _ in read_raw(uri))


def read_raw(uri: str) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """Every row of a file with its location (`file:line`), or the reason why it is unreadable.

    A JSON file holds an object in each line, or one array of objects, which is held in memory as a whole.

    Raises:
        InputError: if a parquet file or a compressed file is damaged.
    """
    if format_of(storage.name_of(uri)) == "parquet":
        with reading(uri), storage.open_input(uri) as file:
            yield from _read_parquet(uri, file)
    else:
        with reading(uri), open_stream(uri) as lines:
            yield from _read_json(uri, lines)


def _parquet(uri: str, file: pa.NativeFile) -> pq.ParquetFile:
    opened = pq.ParquetFile(file)
    names = opened.schema_arrow.names
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"{uri}: several columns have the name {', '.join(repeated)}. Rename them")
    return opened


def _read_parquet(uri: str, file: pa.NativeFile) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    number = 0
    for batch in _parquet(uri, file).iter_batches(1024):
        for row in _rows_of(batch):
            number += 1
            yield f"{uri}:{number}", row


def _rows_of(batch: pa.RecordBatch) -> list[dict[str, Any] | BadRow]:
    """The rows of a batch; where one cannot be converted, the reason."""
    try:
        return batch.to_pylist()
    except (ValueError, pa.ArrowException):  # rare: invalid UTF-8, dates that Python does not have
        return [_row_of(batch, index) for index in range(len(batch))]


def _row_of(batch: pa.RecordBatch, index: int) -> dict[str, Any] | BadRow:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except UnicodeDecodeError:
            return BadRow(f"{name}: invalid UTF-8")
        except (ValueError, pa.ArrowException) as error:
            return BadRow(f"{name}: {error}")
    return row


def _read_json(uri: str, lines: io.BufferedReader) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    if _begins_array(lines):
        content = lines.read()
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):  # lines, of which the first is an array
            lines = io.BufferedReader(io.BytesIO(content))
        else:
            for number, value in enumerate(values, start=1):
                yield f"{uri}:{number}", _object(value)
            return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{uri}:{number}", _parsed(line)


def _begins_array(lines: io.BufferedReader) -> bool:
    return lines.peek(1).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def _parsed(line: bytes) -> dict[str, Any] | BadRow:
    try:
        return _object(json.loads(line))
    except UnicodeDecodeError:
        return BadRow("invalid UTF-8")
    except RecursionError:
        return BadRow("invalid JSON: nested too deeply")
    except ValueError as error:
        return BadRow(f"invalid JSON: {error}")


def _object(value: Any) -> dict[str, Any] | BadRow:
    return value if isinstance(value, dict) else BadRow("not a JSON object")

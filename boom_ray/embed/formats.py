"""Readers of parquet, JSON, CSV and text files: batches of a few rows, each column in the type of its values.

An id or a text that is not one becomes null, so that one pass can count all bad rows. Any other value that
cannot be read is an error: a column that is carried along loses nothing.
"""

from collections.abc import Iterator

import pyarrow as pa

from boom_ray.data.source_files import SourceFile, open_stream, reading
from boom_ray.embed.batch import Columns, RowBatch, decoded, gathered
from boom_ray.embed.csv_file import CsvReader, csv_batches
from boom_ray.embed.json_file import first_row, json_batches
from boom_ray.embed.parquet_file import open_parquet, parquet_batches


def header(file: SourceFile, text_column: str) -> dict[str, pa.DataType | None] | None:
    """Names of the columns of a file, with their types if it states them; None if it has no rows.

    JSON has no header: these are the keys and types of the first row.

    Raises:
        InputError: if the file is damaged.
    """
    with reading(file.uri):
        if file.format == "parquet":
            with open_parquet(file.uri) as opened:
                schema = opened.schema_arrow
            return dict(zip(schema.names, schema.types, strict=True))
        if file.format == "csv":
            with CsvReader(file.uri, text_column) as (names, _):
                return dict.fromkeys(names, pa.string()) if names else None
        if file.format == "text":
            return {text_column: pa.string()}
        return first_row(file.uri)


def batches(file: SourceFile, row_group: int | None, first: int, columns: Columns) -> Iterator[RowBatch]:
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
            yield from parquet_batches(file.uri, row_group, first, columns)
        elif file.format == "csv":
            yield from csv_batches(file.uri, columns)
        elif file.format == "text":
            yield from _text_batches(file.uri, columns)
        else:
            yield from json_batches(file.uri, columns)


def _text_batches(uri: str, columns: Columns) -> Iterator[RowBatch]:
    """Non-empty lines of a text file."""
    with open_stream(uri) as stream:
        lines = ((number, line) for number, line in enumerate(stream, start=1) if line.strip())
        for batch in gathered(lines, lambda line: len(line[1]), columns.batch_rows):
            texts = [
                decoded(line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"")) for number, line in batch
            ]
            values = pa.array([text and text.rstrip("\r\n") for text in texts], pa.string())
            yield RowBatch({columns.text: values}, [number for number, _ in batch], [columns.text])

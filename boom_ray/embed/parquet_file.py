"""Reader of parquet files: any way to store text is text, and damaged pages are errors in sentences."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from boom_ray import storage
from boom_ray.data.source_files import reading
from boom_ray.embed import value_types
from boom_ray.embed.batch import BATCH_BYTES, FEW_ROWS, Columns, RowBatch, decoded, refuse_repeated
from boom_ray.errors import InputError


def row_groups(uri: str) -> list[int]:
    """Rows of each row group of a parquet file."""
    with reading(uri), open_parquet(uri) as file:
        return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def open_parquet(uri: str) -> pq.ParquetFile:
    """Open a file, local or remote."""
    return pq.ParquetFile(storage.open_input(uri), pre_buffer=True)


def parquet_batches(uri: str, row_group: int | None, first: int, columns: Columns) -> Iterator[RowBatch]:
    """The rows of a row group, the first of which has the number `first` in the file."""
    with open_parquet(uri) as file:
        names = file.schema_arrow.names
        refuse_repeated(uri, names, columns)
        wanted = [name for name in columns.names if name in names]
        # A name with a dot also selects columns inside others: what was not requested is left out below.
        found = file.iter_batches(
            _batch_rows(file, row_group, columns), row_groups=[row_group], columns=wanted
        )
        for batch in found:
            read = {name: _plain(uri, name, batch, columns) for name in wanted}
            yield RowBatch(read, list(range(first, first + len(batch))), names)
            first += len(batch)


def _batch_rows(file: pq.ParquetFile, row_group: int | None, columns: Columns) -> int:
    """Rows of a batch: fewer if the rows of the row group are large."""
    found = file.metadata.row_group(row_group)
    fitting = BATCH_BYTES * found.num_rows // max(1, found.total_byte_size)
    return min(columns.batch_rows, max(FEW_ROWS, fitting))


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
    return pa.array([decoded(value) for value in values.to_pylist()], pa.string())

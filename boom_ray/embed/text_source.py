"""The input of an embedding run: files of one format, read and split the same way every time.

A *unit* is what one task reads as a stream: a row group of a parquet file, or a whole file of another format.
A *partition* is a run of consecutive rows of a unit, and becomes one file of the output.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import xxhash

from boom_ray import storage
from boom_ray.data import source_files
from boom_ray.data.source_files import SourceFile
from boom_ray.embed import condition, formats, parquet_file, value_types
from boom_ray.embed.batch import BATCH_ROWS, FEW_ROWS, Columns, RowBatch
from boom_ray.embed.embed_options import EmbedOptions
from boom_ray.errors import InputError, NotFoundError, first_line

FORMATS: tuple[source_files.Format, ...] = ("parquet", "jsonl", "csv", "text")
PARTITION_BYTES = 1 << 20  # of texts: a few huge rows make a partition of their own
TEXT_HASH = "text_xxh3"
COPIED = "column."  # prefix of the copied columns between the stages: they may have any name
TABLE_ROWS = 64  # of the tables that are read, of which partitions consist
NUM_FOOTERS = 16  # of parquet files, read at once


@dataclass(frozen=True)
class SourceUnit:
    """A file, or one row group of it.

    Attributes:
        number: Number of the unit in its source.
        file: The file.
        row_group: The row group; None for other formats than parquet.
        first: Number of its first row in the file.
    """

    number: int
    file: SourceFile
    row_group: int | None = None
    first: int = 1


@dataclass(frozen=True)
class TextSource:
    """Files of one format.

    Attributes:
        uri: The URI as the user wrote it.
        files: The files.
        id_column: Column of ids; None: an id is `file:row`.
        id_type: string, or an integer type.
        options: Which rows and columns are read.
        schema: Schema of the tables that `read` yields; None: each table has the types of its values.
        units: The units to read.
    """

    uri: str
    files: list[SourceFile]
    id_column: str | None
    id_type: pa.DataType
    options: EmbedOptions
    schema: pa.Schema | None = None
    units: tuple[SourceUnit, ...] = ()

    def find_units(self) -> Iterator[SourceUnit]:
        """All units, in the order of the files."""
        number = 0
        for file, groups in self._row_groups():
            first = 1
            for group, num_rows in enumerate(groups):
                yield SourceUnit(number, file, None if file.format != "parquet" else group, first)
                number, first = number + 1, first + num_rows

    def _row_groups(self) -> Iterator[tuple[SourceFile, list[int]]]:
        """Rows of each row group of each file; other formats have one, of unknown length."""
        if self.files[0].format != "parquet":
            yield from ((file, [0]) for file in self.files)
        elif self.options.limit is not None:  # the first files may be enough
            yield from ((file, parquet_file.row_groups(file.uri)) for file in self.files)
        else:
            with ThreadPoolExecutor(NUM_FOOTERS) as pool:
                groups = pool.map(parquet_file.row_groups, [file.uri for file in self.files])
                yield from zip(self.files, groups, strict=True)

    @cached_property
    def _columns(self) -> Columns:
        condition_columns = self._condition.kinds if self._condition else {}
        others = dict.fromkeys([*self.options.columns, *condition_columns])
        batch_rows = BATCH_ROWS if self.options.limit is None else FEW_ROWS
        return Columns(self.options.text_column, self.id_column, self.id_type, tuple(others), batch_rows)

    @cached_property
    def _condition(self) -> condition.Condition | None:
        return condition.parse(self.options.filter) if self.options.filter else None

    def is_from_text(self, file: SourceFile, name: str) -> bool:
        """Whether the values of a column are text in a file: cells of CSV, or the name of a directory."""
        return file.format == "csv" or name in file.partition_values

    def name_in_input(self, name: str) -> str:
        """The name in the input of a column that `read` calls `id` or `text`, or copies."""
        return {"id": self.id_column or "id", "text": self.options.text_column}.get(name, name)

    @property
    def wanted(self) -> list[str]:
        """Names of all columns that are read."""
        return self._columns.names

    def read(self, unit: SourceUnit, found: dict[str, None] | None = None) -> Iterator[pa.Table]:
        """Tables of the rows of a unit that pass the filter; invalid ids and texts are null.

        Args:
            found: Receives the names of the columns that the rows have.

        Returns:
            Tables of `id`, `text`, `text_xxh3`, and the copied columns with the prefix `COPIED`.

        Raises:
            InputError: if a file is damaged, or a value cannot be carried along.
        """
        values = unit.file.partition_values
        from_text = frozenset(name for name in self.wanted if self.is_from_text(unit.file, name))
        for batch in formats.batches(unit.file, unit.row_group, unit.first, self._columns):
            count = len(batch.numbers)
            given = {
                name: pa.array([values[name]] * count, pa.string()) for name in values if name in self.wanted
            }
            columns = batch.columns | given
            if found is not None:
                found |= dict.fromkeys([*batch.names, *values])
            missing = {name: pa.nulls(count) for name in self.wanted if name not in columns}
            table = self._table(unit, batch, missing | columns, from_text)
            yield from (table.slice(start, TABLE_ROWS) for start in range(0, max(1, len(table)), TABLE_ROWS))

    def _table(
        self, unit: SourceUnit, batch: RowBatch, columns: dict[str, pa.Array], from_text: frozenset[str]
    ) -> pa.Table:
        numbers: pa.Array = pa.array(batch.numbers, pa.int64())
        if self._condition:
            rows = self._condition.rows(
                {name: columns[name] for name in self._condition.kinds}, from_text, unit.file.uri
            )
            columns, numbers = {name: columns[name].take(rows) for name in columns}, numbers.take(rows)
        if self.id_column is None:
            ids = pa.array([f"{unit.file.path}:{number}" for number in numbers.to_pylist()], pa.string())
        else:
            ids = columns[self.id_column]
        texts = columns[self.options.text_column].cast(pa.string())
        hashes = [0 if text is None else _hash(text) for text in texts.to_pylist()]
        table = {"id": ids, "text": texts, TEXT_HASH: pa.array(hashes, pa.uint64())}
        for name in self.options.columns:
            table[COPIED + name] = self._copied(unit, name, columns[name], name in from_text)
        found = pa.table(table)
        return found.cast(self.schema) if self.schema is not None else found

    def _copied(self, unit: SourceUnit, name: str, values: pa.Array, from_text: bool) -> pa.Array:
        """A copied column in its type, or in the smallest that holds these values."""
        if not from_text:
            return (
                values
                if self.schema is None
                else _cast(unit, name, values, self.schema.field(COPIED + name).type)
            )
        wanted = (
            value_types.type_of_text(values) if self.schema is None else self.schema.field(COPIED + name).type
        )
        return value_types.converted_text(values, wanted)

    def partitions(self, unit: SourceUnit, max_rows: int, skipped: np.ndarray) -> Iterator[pa.Table]:
        """Split the rows of a unit into runs, the same ones at every reading.

        Args:
            max_rows: Maximum rows of a partition.
            skipped: Sorted uint64, the `row_keys` of rows to leave out.
        """
        pending, num_rows, num_bytes = [], 0, 0
        for table in self.read(unit):
            if len(skipped):
                table = table.filter(pa.array(~np.isin(row_keys(table), skipped)))
            pending.append(table)
            num_rows += len(table)
            num_bytes += table["text"].nbytes
            if num_rows >= max_rows or num_bytes >= PARTITION_BYTES:
                yield pa.concat_tables(pending)
                pending, num_rows, num_bytes = [], 0, 0
        if num_rows:
            yield pa.concat_tables(pending)


def _cast(unit: SourceUnit, name: str, values: pa.Array, wanted: pa.DataType) -> pa.Array:
    try:
        return values.cast(wanted)
    except pa.ArrowException as error:
        raise InputError(
            f"{unit.file.uri}: column {name!r} holds values that are not {wanted}, the type of the others: "
            f"{first_line(error)}. Write the column as text"
        ) from error


def row_keys(table: pa.Table) -> np.ndarray:
    """[n] uint64, a hash of id and text of each row."""
    pairs = zip(table["id"].to_pylist(), table[TEXT_HASH].to_pylist(), strict=True)
    return np.array([_hash(f"{identity!r} {text}") for identity, text in pairs], dtype=np.uint64)


def id_hashes(ids: pa.ChunkedArray) -> np.ndarray:
    """[n] uint64, a hash of each id."""
    return np.array([_hash(repr(identity)) for identity in ids.to_pylist()], dtype=np.uint64)


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def open_source(uri: str, options: EmbedOptions) -> TextSource:
    """Find the files of a source, and check the columns of the first that has rows.

    Raises:
        NotFoundError: if there are no files, or the column of texts or ids is missing.
        InputError: if the files are of several formats, or a column has a wrong type.
    """
    files = _files(uri)
    if options.filter:
        condition.parse(options.filter)
    names: set[str] = set()
    id_column, id_type = options.id_column, pa.null()
    for file in files:
        columns = formats.header(file, options.text_column)
        if columns is None:
            continue
        columns = {**columns, **dict.fromkeys(file.partition_values, pa.string())}
        if not names:
            names = set(columns)
            if id_column is None and "id" in columns:
                id_column = "id"
            _refuse_missing(uri, options, columns, file.format)
        if id_column is None:
            break
        id_type = columns.get(id_column) or pa.null()
        if not pa.types.is_null(id_type):
            break
    if pa.types.is_null(id_type):
        id_type = pa.string()
    if not (pa.types.is_integer(id_type) or value_types.is_text(id_type)):
        raise InputError(f"{uri}: ids in {id_column!r} are {id_type}; allowed: integers or strings")
    id_type = pa.string() if value_types.is_text(id_type) else id_type
    return TextSource(uri, files, id_column, id_type, options)


def _refuse_missing(
    uri: str, options: EmbedOptions, columns: dict[str, pa.DataType | None], form: source_files.Format | None
) -> None:
    missing = [name for name in (options.text_column, options.id_column) if name and name not in columns]
    if missing:
        raise not_found(uri, missing, list(columns))
    text_type = columns[options.text_column]
    if form == "parquet" and not (value_types.is_text(text_type) or pa.types.is_null(text_type)):
        raise InputError(f"{uri}: texts in {options.text_column!r} are {text_type}; allowed: strings")


def not_found(uri: str, missing: list[str], names: list[str]) -> NotFoundError:
    """The error for columns that no file has."""
    shown = " and ".join(repr(name) for name in missing)
    return NotFoundError(
        f"{uri}: no column {shown}; it has {', '.join(names)}. "
        "Name others with text_column, id_column, columns"
    )


def _files(uri: str) -> list[SourceFile]:
    """The data files of a source."""
    if storage.is_hub(uri) or storage.is_hub_dataset(uri):
        raise InputError(
            f"{uri}: texts are not read from the Hugging Face hub. Download the files first: "
            "hf download OWNER/NAME --repo-type dataset --local-dir DIRECTORY"
        )
    files = source_files.find(uri, FORMATS)
    found = sorted({str(file.format) for file in files})
    if len(found) != 1 or files[0].format is None:
        examples = ", ".join(next(file.path for file in files if str(file.format) == form) for form in found)
        suffixes = ", ".join(source_files.SUFFIXES)
        raise InputError(
            f"{uri}: expected files of one format ({suffixes}); got {examples}. Name one file or pattern"
        )
    return files

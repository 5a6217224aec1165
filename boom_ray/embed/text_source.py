"""The input of an embedding run: files of one format, read and split the same way every time.

A *unit* is what one task reads as a stream: a row group of a parquet file, or a whole file of another format.
A *partition* is a run of consecutive rows of a unit, and becomes one file of the output.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import xxhash

from boom_ray import artifacts, storage
from boom_ray.data import rows
from boom_ray.embed import condition, formats
from boom_ray.embed.embed_options import EmbedOptions
from boom_ray.errors import InputError, NotFoundError

PARTITION_BYTES = 1 << 20  # of texts: a few huge rows make a partition of their own
TEXT_HASH = "text_xxh3"


@dataclass(frozen=True)
class SourceUnit:
    """A file, or one row group of it."""

    number: int
    uri: str
    row_group: int | None = None


@dataclass(frozen=True)
class TextSource:
    """Files of one format whose columns were checked.

    Attributes:
        uri: The URI as the user wrote it.
        files: URIs of the files.
        id_type: string, or the integer type of the first file.
        types: Types of the columns that are copied or that the filter names.
        options: Which rows and columns are read.
    """

    uri: str
    files: list[str]
    id_type: pa.DataType
    types: dict[str, pa.DataType]
    options: EmbedOptions

    @property
    def schema(self) -> pa.Schema:
        """Schema of the tables that `read` yields: `id`, `text`, `text_xxh3`, and the copied columns."""
        copied = [(name, self.types[name]) for name in self.options.columns]
        return pa.schema([("id", self.id_type), ("text", pa.string()), (TEXT_HASH, pa.uint64()), *copied])

    @cached_property
    def units(self) -> list[SourceUnit]:
        """All units, in the order of the files."""
        found: list[tuple[str, int | None]] = []
        for uri in self.files:
            if formats.is_parquet(uri):
                found += [(uri, group) for group in range(formats.num_row_groups(uri))]
            else:
                found.append((uri, None))
        return [SourceUnit(number, *which) for number, which in enumerate(found)]

    def read(self, unit: SourceUnit) -> Iterator[pa.Table]:
        """Tables of the rows of a unit that pass the filter; invalid ids and texts are null."""
        names = [self.options.id_column, self.options.text_column, *self.types]
        schema = pa.schema([(names[0], self.id_type), (names[1], pa.string()), *self.types.items()])
        # The filter may name the id or the text column: each name once.
        schema = pa.schema({field.name: field for field in schema}.values())
        wanted = condition.parse(self.options.filter)[0] if self.options.filter else None
        for table in formats.read_tables(unit.uri, unit.row_group, schema):
            table = table if wanted is None else table.filter(wanted)
            texts = table[self.options.text_column]
            hashes = [0 if text is None else _hash(text) for text in texts.to_pylist()]
            columns = [table[self.options.id_column], texts, pa.array(hashes, pa.uint64())]
            copied = [table[name] for name in self.options.columns]
            yield pa.table([*columns, *copied], schema=self.schema)

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
    """Find the files of a source, and check the columns of the first.

    Raises:
        NotFoundError: if there are no files, or a column is missing.
        InputError: if the files are of several formats, or a column has a wrong type.
    """
    files = _files(uri)
    columns = formats.columns_of(uri, files, options)
    filtered = condition.parse(options.filter)[1] if options.filter else set()
    wanted = [options.text_column, options.id_column, *options.columns, *sorted(filtered)]
    missing = [repr(name) for name in dict.fromkeys(wanted) if name not in columns]
    if missing:
        raise NotFoundError(
            f"{uri}: no column {' and '.join(missing)}; it has {', '.join(columns)}. "
            "Name others with text_column, id_column, columns"
        )
    id_type, text_type = columns[options.id_column], columns[options.text_column]
    if not (pa.types.is_integer(id_type) or formats.is_text(id_type)):
        raise InputError(f"{uri}: ids in {options.id_column!r} are {id_type}; allowed: integers or strings")
    if formats.is_parquet(files[0]) and not formats.is_text(text_type):
        raise InputError(f"{uri}: texts in {options.text_column!r} are {text_type}; allowed: strings")
    id_type = pa.string() if formats.is_text(id_type) else id_type
    types = {name: columns[name] for name in {*options.columns, *filtered}}
    return TextSource(uri, files, id_type, types, options)


def _files(uri: str) -> list[str]:
    """The data files of a source, but for the record of an artifact."""
    found = rows.data_files(uri, formats.SUFFIXES)
    files = [file for file in found if storage.name_of(file) != artifacts.RECORD]
    suffixes = {".jsonl" if file.endswith(".json") else "." + file.rpartition(".")[2] for file in files}
    if len(suffixes) != 1 or not suffixes <= set(formats.SUFFIXES):
        raise InputError(f"{uri}: expected {', '.join(formats.SUFFIXES)} files of one format")
    return files

"""What is embedded: files of one format, cut into partitions that are the same at every reading.

A *unit* is what one task reads as a stream: a row group of a parquet file, or a file of another format. A
*partition* is a run of consecutive rows of a unit, and becomes one file of the output.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import xxhash

from boom_ray import artifacts, storage
from boom_ray.data import rows
from boom_ray.embed import condition
from boom_ray.embed.options import Options
from boom_ray.errors import BoomError

SUFFIXES = (*rows.SUFFIXES, ".csv", ".txt")
BATCH_ROWS = 64
PARTITION_BYTES = 1 << 20  # of texts: a few huge rows make a partition of their own
TEXT_HASH = "text_xxh3"


@dataclass(frozen=True)
class Unit:
    """What one task reads: a file, or one row group of it."""

    number: int
    uri: str
    row_group: int | None = None


@dataclass(frozen=True)
class Source:
    """Files whose columns are known to be there.

    Attributes:
        uri: As the user gave it.
        files: URIs of its files, all of one format.
        id_type: int64 or string; the integer type of the first file for parquet.
        types: Of the columns that are carried along or that the filter names.
        options: What of them is read.
    """

    uri: str
    files: list[str]
    id_type: pa.DataType
    types: dict[str, pa.DataType]
    options: Options

    @property
    def schema(self) -> pa.Schema:
        """Of what is read: `id`, `text`, `text_xxh3`, and the columns carried along."""
        carried = [(name, self.types[name]) for name in self.options.columns]
        return pa.schema([("id", self.id_type), ("text", pa.string()), (TEXT_HASH, pa.uint64()), *carried])

    @cached_property
    def units(self) -> list[Unit]:
        """All units, in the order of the files."""
        found: list[tuple[str, int | None]] = []
        for uri in self.files:
            groups = _num_row_groups(uri) if _is_parquet(uri) else None
            found += [(uri, None)] if groups is None else [(uri, group) for group in range(groups)]
        return [Unit(number, *which) for number, which in enumerate(found)]

    def read(self, unit: Unit) -> Iterator[pa.Table]:
        """The rows of a unit that pass the filter, a few at a time; what is no valid id or text is null."""
        wanted = condition.parse(self.options.filter)[0] if self.options.filter else None
        for table in self._tables(unit):
            table = table if wanted is None else table.filter(wanted)
            texts = table[self.options.text_column]
            hashes = [0 if text is None else _hash(text) for text in texts.to_pylist()]
            columns = [table[self.options.id_column], texts, pa.array(hashes, pa.uint64())]
            carried = [table[name] for name in self.options.columns]
            yield pa.table([*columns, *carried], schema=self.schema)

    def _tables(self, unit: Unit) -> Iterator[pa.Table]:
        """Rows with the id and text columns and those of `types`, under their own names."""
        names = [self.options.id_column, self.options.text_column, *self.types]
        schema = pa.schema([(names[0], self.id_type), (names[1], pa.string()), *self.types.items()])
        schema = pa.schema({field.name: field for field in schema}.values())
        if _is_parquet(unit.uri):
            yield from _parquet_tables(unit, schema)
        elif unit.uri.endswith(".csv"):
            yield from _csv_tables(unit.uri, schema)
        else:
            raw = rows.read_raw(unit.uri) if not unit.uri.endswith(".txt") else _lines(unit.uri, *names[:2])
            yield from _row_tables(raw, schema)


def partitions(source: Source, unit: Unit, most_rows: int, known: np.ndarray) -> Iterator[pa.Table]:
    """Cut the rows of a unit that are not known into runs; the same ones at every reading.

    Args:
        most_rows: Of one partition.
        known: Sorted uint64, what `keys` gives for rows that are not wanted.
    """
    pending, num_rows, num_bytes = [], 0, 0
    for table in source.read(unit):
        if len(known):
            table = table.filter(pa.array(~np.isin(keys(table), known)))
        pending.append(table)
        num_rows += len(table)
        num_bytes += table["text"].nbytes
        if num_rows >= most_rows or num_bytes >= PARTITION_BYTES:
            yield pa.concat_tables(pending)
            pending, num_rows, num_bytes = [], 0, 0
    if num_rows:
        yield pa.concat_tables(pending)


def keys(table: pa.Table) -> np.ndarray:
    """[n] uint64, a hash of id and text of each row."""
    pairs = zip(table["id"].to_pylist(), table[TEXT_HASH].to_pylist(), strict=True)
    return np.array([_hash(f"{identity!r} {text}") for identity, text in pairs], dtype=np.uint64)


def id_hashes(ids: pa.ChunkedArray) -> np.ndarray:
    """[n] uint64."""
    return np.array([_hash(repr(identity)) for identity in ids.to_pylist()], dtype=np.uint64)


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


# ── Finding files and columns ──────────────────────────────────────────────────────────────────────


def open_source(uri: str, options: Options) -> Source:
    """Find the files of a source, and check the columns of the first.

    Raises:
        BoomError: if there are none, they are of several formats, or a column is missing or of a wrong type.
    """
    files = [file for file in rows.data_files(uri, SUFFIXES) if storage.name_of(file) != artifacts.RECORD]
    formats = {".jsonl" if file.endswith(".json") else "." + file.rpartition(".")[2] for file in files}
    if len(formats) != 1 or not formats <= set(SUFFIXES):
        raise BoomError(f"{uri}: expected {', '.join(SUFFIXES)} files of one format")
    columns = _columns(uri, files, options)
    named = condition.parse(options.filter)[1] if options.filter else set()
    own = {"--text-column": options.text_column, "--id-column": options.id_column}
    missing = [
        repr(name)
        for name in dict.fromkeys([*own.values(), *options.columns, *sorted(named)])
        if name not in columns
    ]
    if missing:
        raise BoomError(
            f"{uri}: no column {' and '.join(missing)}; it has {', '.join(columns)}. "
            "Name others with --text-column, --id-column, --columns"
        )
    id_type, text_type = columns[options.id_column], columns[options.text_column]
    if not (pa.types.is_integer(id_type) or _is_text(id_type)):
        raise BoomError(f"{uri}: ids in {options.id_column!r} are {id_type}; allowed: integers or strings")
    if formats == {".parquet"} and not _is_text(text_type):
        raise BoomError(f"{uri}: texts in {options.text_column!r} are {text_type}; allowed: strings")
    id_type = pa.string() if _is_text(id_type) else id_type
    return Source(uri, files, id_type, {name: columns[name] for name in {*options.columns, *named}}, options)


def _is_parquet(uri: str) -> bool:
    return uri.endswith(".parquet")


def _is_text(data_type: pa.DataType) -> bool:
    return pa.types.is_string(data_type) or pa.types.is_large_string(data_type)


def _columns(source: str, files: list[str], options: Options) -> dict[str, pa.DataType]:
    """Name and type of the columns; of rows that have no schema, those of the first."""
    first = files[0]
    if _is_parquet(first):
        with _parquet(first) as file:
            schema = file.schema_arrow
        return dict(zip(schema.names, schema.types, strict=True))
    if first.endswith(".csv"):
        with storage.open_input(first) as handle, _explained(first), pa.csv.open_csv(handle) as reader:
            return dict(zip(reader.schema.names, reader.schema.types, strict=True))
    if first.endswith(".txt"):
        return {options.id_column: pa.string(), options.text_column: pa.string()}
    row = next(itertools.chain.from_iterable(map(rows.read_raw, files)), None)
    if row is None:
        raise BoomError(f"{source}: holds no rows")
    types = {int: pa.int64(), str: pa.string(), float: pa.float64(), bool: pa.bool_()}
    return {key: types.get(type(value), pa.null()) for key, value in _usable(*row).items()}


# ── Reading ────────────────────────────────────────────────────────────────────────────────────────


class _explained:
    """Turns what pyarrow says of a file into one sentence that names it."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, pa.ArrowException):
            form = self.uri.rpartition(".")[2]
            raise BoomError(
                f"{self.uri}: not a readable {form} file: {str(error).splitlines()[0]}"
            ) from error


def _parquet(uri: str) -> pq.ParquetFile:
    with _explained(uri):
        return pq.ParquetFile(storage.open_input(uri), pre_buffer=True)


def _num_row_groups(uri: str) -> int:
    with _parquet(uri) as file:
        return file.num_row_groups


def _parquet_tables(unit: Unit, schema: pa.Schema) -> Iterator[pa.Table]:
    with _parquet(unit.uri) as file, _explained(unit.uri):
        missing = set(schema.names) - set(file.schema_arrow.names)
        if missing:
            raise BoomError(f"{unit.uri}: no column {', '.join(sorted(missing))}, which the first file has")
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[unit.row_group], columns=schema.names):
            yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)


def _csv_tables(uri: str, schema: pa.Schema) -> Iterator[pa.Table]:
    convert = pa.csv.ConvertOptions(
        column_types=schema, include_columns=schema.names, strings_can_be_null=False
    )
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    with (
        storage.open_input(uri) as handle,
        _explained(uri),
        pa.csv.open_csv(handle, parse_options=parse, convert_options=convert) as reader,
    ):
        for batch in reader:
            for start in range(0, len(batch), BATCH_ROWS):
                yield pa.Table.from_batches([batch.slice(start, BATCH_ROWS)])


def _lines(uri: str, id_column: str, text_column: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every line of a text file that is not empty, under its place as the id."""
    with storage.open_input(uri) as handle:
        for number, line in enumerate(rows.buffered(handle), start=1):
            place = f"{storage.name_of(uri)}:{number}"
            if line.strip():
                yield (
                    place,
                    {id_column: place, text_column: line.decode(errors="surrogateescape").rstrip("\r\n")},
                )


def _row_tables(raw: Iterator[tuple[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    while chunk := list(itertools.islice(raw, BATCH_ROWS)):
        usable = [_usable(place, row) for place, row in chunk]
        columns = [[_valid(row.get(field.name), field.type) for row in usable] for field in schema]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        yield pa.table(arrays, schema=schema)


def _usable(place: str, row: dict[str, Any] | rows.BadRow) -> dict[str, Any]:
    if isinstance(row, rows.BadRow):
        raise BoomError(f"{place}: {row}")
    return row


def _valid(value: Any, wanted: pa.DataType) -> Any:
    """The value, if it is of its type and parquet can hold it; else None."""
    if pa.types.is_string(wanted):
        return value if isinstance(value, str) and (value.isascii() or _is_unicode(value)) else None
    if pa.types.is_integer(wanted):  # a bool is an int as well
        return value if type(value) is int and -(1 << 63) <= value < 1 << 63 else None
    if pa.types.is_floating(wanted):
        return float(value) if isinstance(value, int | float) else None
    return value if pa.types.is_boolean(wanted) and isinstance(value, bool) else None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return False
    return True

"""The first pass: all rows are read before a model is loaded.

A null in the last file is then an error after seconds, not after hours.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from boom_ray import artifacts, storage
from boom_ray.artifacts import EmbeddingsRecord
from boom_ray.embed import schemas
from boom_ray.embed.text_source import TEXT_HASH, SourceUnit, TextSource, id_hashes, not_found, row_keys
from boom_ray.errors import ConflictError, InputError, NotFoundError
from boom_ray.runtime.cluster import result_of

EXAMPLES = 5
TALLY_SCHEMA = pa.schema(
    [
        *((name, pa.int64()) for name in ("unit", "all", "new", "null_ids", "null_texts", "empty")),
        *((name, pa.list_(pa.string())) for name in ("null_text_ids", "empty_ids", "names")),
        ("content", pa.int64()),
        ("ids", pa.large_binary()),
        ("types", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Survey:
    """The rows to embed.

    Attributes:
        source: The source, with the units and the types that were found.
        rows: Rows to embed of each unit.
        unchanged: Rows that earlier outputs contain.
        deleted: Ids of earlier outputs that the source no longer contains.
        content: Identity of all rows, independent of their order.
    """

    source: TextSource
    rows: list[int]
    unchanged: int
    deleted: list[Any]
    content: str


@dataclass(frozen=True)
class EarlierRows:
    """Rows of earlier outputs.

    Attributes:
        keys: Sorted uint64, `row_keys` of all rows.
        ids: Sorted uint64, hashes of all ids.
        names: The ids themselves, in the order of `ids`.
    """

    keys: np.ndarray
    ids: np.ndarray
    names: list[Any]


@dataclass
class UnitTally:
    """Sums over the rows of one unit; Ray Data returns it as a row of `TALLY_SCHEMA`.

    Attributes:
        unit: Number of the unit.
        all: Rows.
        new: Rows that no earlier output contains.
        null_ids: Ids that are null or of a wrong type.
        null_texts: Texts that are null or not text.
        empty: Texts that are empty.
        null_text_ids: Ids of the first null texts, as text.
        empty_ids: Ids of the first empty texts, as text.
        content: Sum of the keys of all rows, modulo 2**62.
        ids: Hashes of all ids, uint64.
        names: Names of columns that the rows have.
        types: The smallest schema that holds the rows, serialized; empty without rows.
    """

    unit: int
    all: int = 0
    new: int = 0
    null_ids: int = 0
    null_texts: int = 0
    empty: int = 0
    null_text_ids: list[str] = field(default_factory=list)
    empty_ids: list[str] = field(default_factory=list)
    content: int = 0
    ids: bytes = b""
    names: list[str] = field(default_factory=list)
    types: bytes = b""

    def add(self, table: pa.Table, earlier_keys: np.ndarray) -> None:
        """Count the rows of a table; their ids are up to the caller."""
        keys = row_keys(table)
        texts = list(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
        empty = [repr(identity) for identity, text in texts if text == ""]
        self.all += len(table)
        self.new += int((~np.isin(keys, earlier_keys)).sum())
        self.null_ids += table["id"].null_count
        self.null_texts += table["text"].null_count
        self.empty += len(empty)
        self.null_text_ids += [repr(identity) for identity, text in texts if text is None]
        self.empty_ids += empty
        del self.null_text_ids[EXAMPLES:], self.empty_ids[EXAMPLES:]
        self.content = (self.content + int(keys.sum(dtype=np.uint64))) % (1 << 62)


def read_earlier(outputs: tuple[str, ...], model: str, fingerprint: dict[str, Any]) -> EarlierRows:
    """The rows of earlier outputs.

    Args:
        outputs: URIs of earlier outputs.
        model: Digest of the model of this run.
        fingerprint: The other settings on which vectors depend.

    Raises:
        NotFoundError: if a URI contains no embeddings.
        ConflictError: if an output was made with another model or other settings.
    """
    tables = []
    for uri in outputs:
        record = _comparable_record(uri, model, fingerprint)
        for name in record.files:
            if name.endswith(".parquet"):
                with storage.open_input(storage.join(uri, name)) as file:
                    tables.append(pq.read_table(file, columns=["id", TEXT_HASH]))
    if not tables:
        return EarlierRows(np.empty(0, np.uint64), np.empty(0, np.uint64), [])
    table = pa.concat_tables(tables)
    hashes = id_hashes(table["id"])
    order = np.argsort(hashes)
    names = table["id"].take(pa.array(order)).to_pylist()
    return EarlierRows(np.unique(row_keys(table)), hashes[order], names)


def _comparable_record(uri: str, model: str, fingerprint: dict[str, Any]) -> EmbeddingsRecord:
    """The record of an output whose vectors can be compared with those of this run."""
    record = artifacts.find(uri, EmbeddingsRecord)
    if record is None:
        raise NotFoundError(f"since {uri}: contains no embeddings. Name the output of an earlier run")
    if record.config.model != model:
        raise ConflictError(
            f"since {uri}: was made by another model ({record.parents[0].name} "
            f"{record.parents[0].version}), whose vectors cannot be compared with this one's: all rows "
            "must be embedded again. Omit since"
        )
    different = [
        f"{key}: {getattr(record.config, key)!r}"
        for key in fingerprint
        if getattr(record.config, key) != fingerprint[key]
    ]
    if different:
        raise ConflictError(f"since {uri}: was made with {', '.join(different)}. Use the same, or omit since")
    return record


def survey(source: TextSource, earlier: EarlierRows) -> Survey:
    """Read every row once, or as many as the limit of the source.

    Raises:
        InputError: if there are no rows, ids are null or repeated, or texts are null or not text; or empty,
            unless `empty_text` allows it; or a column has values of types that cannot be stored together.
        NotFoundError: if no row has one of the columns.
    """
    units, tallies = _tallies(source, earlier)
    total = sum(tally.all for tally in tallies)
    if not total:
        raise InputError(
            f"{source.uri}: contains no rows" + (" that pass the filter" if source.options.filter else "")
        )
    _refuse_missing_columns(source, tallies)
    _refuse_bad_rows(source, tallies, total)
    source = replace(source, units=tuple(units), schema=schemas.common(source, units, tallies))
    ids = np.concatenate([np.frombuffer(tally.ids, np.uint64) for tally in tallies])
    _refuse_repeated_ids(source, ids)
    counts = [tally.new for tally in tallies]
    content = artifacts.fingerprint([sum(tally.content for tally in tallies) % (1 << 64), counts])
    # An output with a limit does not cover the source, and reports no deletions.
    missing = np.flatnonzero(~np.isin(earlier.ids, ids)).tolist() if source.options.limit is None else []
    deleted = [earlier.names[index] for index in missing]
    return Survey(source, counts, total - sum(counts), deleted, content)


def _tallies(source: TextSource, earlier: EarlierRows) -> tuple[list[SourceUnit], list[UnitTally]]:
    """The units that are read, and their sums."""
    if source.options.limit is not None:
        task = ray.remote(num_cpus=0.5)(_tallies_up_to_limit)
        tallies = result_of(task.remote(source, earlier.keys))
        return list(islice(source.find_units(), len(tallies))), tallies
    units, shared = list(source.find_units()), ray.put(earlier.keys)
    if not units:
        return [], []

    def tally(batch: pa.Table) -> pa.Table:
        found = _tally_unit(source, units[batch["unit"][0].as_py()], ray.get(shared))
        return pa.Table.from_pylist([asdict(found)], schema=TALLY_SCHEMA)

    items = [{"unit": unit.number} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    found = dataset.map_batches(tally, batch_size=1, batch_format="pyarrow", num_cpus=0.5).take_all()
    return units, sorted((UnitTally(**row) for row in found), key=lambda tally: tally.unit)


def _tallies_up_to_limit(source: TextSource, earlier_keys: np.ndarray) -> list[UnitTally]:
    """The sums of the first units, one after the other: what is behind the limit is not read."""
    assert source.options.limit is not None
    tallies, left = list[UnitTally](), source.options.limit
    for unit in source.find_units():
        tallies.append(_tally_unit(source, unit, earlier_keys, left))
        left -= tallies[-1].new
        if left <= 0:
            break
    return tallies


def _tally_unit(
    source: TextSource, unit: SourceUnit, earlier_keys: np.ndarray, limit: int | None = None
) -> UnitTally:
    """The sums over the rows of a unit, up to a number of new rows."""
    tally, hashes, found, schema = UnitTally(unit.number), list[bytes](), dict[str, None](), None
    for table in source.read(unit, found):
        if limit is not None:
            is_new = np.cumsum(~np.isin(row_keys(table), earlier_keys))
            table = table.slice(0, int(np.searchsorted(is_new, limit - tally.new)) + 1)
        tally.add(table, earlier_keys)
        hashes.append(id_hashes(table["id"]).tobytes())
        schema = schemas.unified(source, unit, schema, table.schema)
        if limit is not None and tally.new >= limit:
            break
    tally.ids, tally.names = b"".join(hashes), list(found)
    tally.types = schema.serialize().to_pybytes() if schema is not None else b""
    return tally


def _refuse_missing_columns(source: TextSource, tallies: list[UnitTally]) -> None:
    names = list(dict.fromkeys(name for tally in tallies for name in tally.names))
    missing = [name for name in source.wanted if name not in names]
    if missing:
        raise not_found(source.uri, missing, names)
    if source.options.id_column is None and source.id_column is None and "id" in names:
        raise InputError(
            f"{source.uri}: some rows have a column 'id', and the first has none. Give all rows an id, or "
            "name another id_column"
        )


def _examples(ids: Iterable[str], count: int) -> str:
    shown = list(dict.fromkeys(ids))[:EXAMPLES]
    return ", ".join(shown) + (", …" if count > EXAMPLES else "")


def _refuse_bad_rows(source: TextSource, tallies: list[UnitTally], total: int) -> None:
    options = source.options
    problems = []
    null_ids = sum(tally.null_ids for tally in tallies)
    if null_ids:
        problems.append(f"{null_ids} ids in {source.id_column!r} are null or not {source.id_type}")
    count = sum(tally.null_texts for tally in tallies)
    if count:
        which = _examples((name for tally in tallies for name in tally.null_text_ids), count)
        problems.append(f"{count} texts in {options.text_column!r} are null or not text: id {which}")
    count = sum(tally.empty for tally in tallies)
    if count and options.empty_text == "refuse":
        which = _examples((name for tally in tallies for name in tally.empty_ids), count)
        problems.append(
            f"{count} texts in {options.text_column!r} are empty (allowed with empty_text: embed): id {which}"
        )
    if problems:
        raise InputError.of(problems, f"{source.uri}: fix or drop these of its {total} rows:")


def _refuse_repeated_ids(source: TextSource, ids: np.ndarray) -> None:
    values, counts = np.unique(ids, return_counts=True)
    repeated = values[counts > 1]
    if not len(repeated):
        return
    examples: list[str] = []
    for name in _ids_with_hash(source, repeated):
        examples.append(name)
        if len(set(examples)) >= EXAMPLES:
            break
    raise InputError(
        f"{source.uri}: {len(repeated)} ids in {source.id_column!r} occur more than once: "
        f"{_examples(examples, len(repeated))}. Drop the repeated rows, or name another id_column"
    )


def _ids_with_hash(source: TextSource, hashes: np.ndarray) -> Iterator[str]:
    """Ids with one of these hashes, as text: only hashes are kept of the first pass."""
    for unit in source.units:
        for table in source.read(unit):
            hit = np.isin(id_hashes(table["id"]), hashes)
            yield from (repr(name) for name in table["id"].filter(pa.array(hit)).to_pylist())

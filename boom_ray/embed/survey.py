"""The first pass: all rows are read before a model is loaded.

A null in the last file is then an error after seconds, not after hours.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from boom_ray import artifacts
from boom_ray.embed import schemas
from boom_ray.embed.earlier_rows import EarlierRows
from boom_ray.embed.text_source import SourceUnit, TextSource, id_hashes, not_found, row_keys
from boom_ray.embed.tokens import TokenCheck
from boom_ray.embed.unit_tally import EXAMPLES, TALLY_SCHEMA, UnitTally
from boom_ray.errors import InputError
from boom_ray.runtime.cluster import result_of


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


def survey(source: TextSource, earlier: EarlierRows, check: TokenCheck | None = None) -> Survey:
    """Read every row once, or as many as the limit of the source.

    Args:
        check: Finds texts without tokens; None: there are none.

    Raises:
        InputError: if there are no rows, ids are null or repeated, or texts are null or not text; or empty,
            unless `empty_text` allows it; or without tokens, unless `no_tokens` does; or a column has values
            of types that cannot be stored together.
        NotFoundError: if no row has one of the columns.
    """
    units, tallies = _tallies(source, earlier, check)
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


def _tallies(
    source: TextSource, earlier: EarlierRows, check: TokenCheck | None
) -> tuple[list[SourceUnit], list[UnitTally]]:
    """The units that are read, and their sums."""
    if source.options.limit is not None:
        task = ray.remote(num_cpus=0.5)(_tallies_up_to_limit)
        tallies = result_of(task.remote(source, earlier.keys, check))
        return list(islice(source.find_units(), len(tallies))), tallies
    units, shared = list(source.find_units()), ray.put(earlier.keys)
    if not units:
        return [], []

    def tally(batch: pa.Table) -> pa.Table:
        found = _tally_unit(source, units[batch["unit"][0].as_py()], ray.get(shared), check)
        return pa.Table.from_pylist([asdict(found)], schema=TALLY_SCHEMA)

    items = [{"unit": unit.number} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    found = dataset.map_batches(tally, batch_size=1, batch_format="pyarrow", num_cpus=0.5).take_all()
    return units, sorted((UnitTally(**row) for row in found), key=lambda tally: tally.unit)


def _tallies_up_to_limit(
    source: TextSource, earlier_keys: np.ndarray, check: TokenCheck | None = None
) -> list[UnitTally]:
    """The sums of the first units, one after the other: what is behind the limit is not read."""
    assert source.options.limit is not None
    tallies, left = list[UnitTally](), source.options.limit
    for unit in source.find_units():
        tallies.append(_tally_unit(source, unit, earlier_keys, check, left))
        left -= tallies[-1].new
        if left <= 0:
            break
    return tallies


def _tally_unit(
    source: TextSource,
    unit: SourceUnit,
    earlier_keys: np.ndarray,
    check: TokenCheck | None = None,
    limit: int | None = None,
) -> UnitTally:
    """The sums over the rows of a unit, up to a number of new rows."""
    tally, hashes, found, schema = UnitTally(unit.number), list[bytes](), dict[str, None](), None
    for table in source.read(unit, found):
        if limit is not None:
            is_new = np.cumsum(~np.isin(row_keys(table), earlier_keys))
            table = table.slice(0, int(np.searchsorted(is_new, limit - tally.new)) + 1)
        tally.add(table, earlier_keys, check)
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
    count = sum(tally.tokenless for tally in tallies)
    if count and options.no_tokens == "refuse":
        which = _examples((name for tally in tallies for name in tally.tokenless_ids), count)
        problems.append(
            f"{count} texts in {options.text_column!r} have no tokens (their vectors are zero with "
            f"no_tokens: zeros): id {which}"
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

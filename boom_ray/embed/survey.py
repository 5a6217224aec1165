"""The first pass: all rows are read and no model is loaded, so that a null in the last file is an error after
seconds and not after hours."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from boom_ray import artifacts, storage
from boom_ray.artifacts import EmbeddingsRecord
from boom_ray.embed.source import TEXT_HASH, Source, Unit, id_hashes, keys
from boom_ray.errors import BoomError

EXAMPLES = 5


@dataclass(frozen=True)
class Survey:
    """What there is to embed.

    Attributes:
        rows: Of each unit, those that are not known.
        unchanged: Rows that earlier outputs have.
        gone: Ids of earlier outputs that are no longer in the source.
        content: Identity of all rows, whatever their order.
    """

    rows: list[int]
    unchanged: int
    gone: list[Any]
    content: str


@dataclass(frozen=True)
class Known:
    """Rows of earlier outputs: `keys` and `ids` are sorted hashes, `names` the ids in the order of `ids`."""

    keys: np.ndarray
    ids: np.ndarray
    names: list[Any]


def read_known(outputs: tuple[str, ...], model: str, fingerprint: dict[str, Any]) -> Known:
    """The rows that earlier outputs hold.

    Args:
        model: Digest of the model that is about to embed.
        fingerprint: What else of a run's configuration makes vectors comparable.

    Raises:
        BoomError: if an output was made by another model, or otherwise: then all must be embedded again.
    """
    tables = []
    for uri in outputs:
        record = artifacts.find(uri, EmbeddingsRecord)
        if record is None:
            raise BoomError(f"--since {uri}: no embeddings there. Give the output of an earlier run")
        if record.config.model != model:
            raise BoomError(
                f"--since {uri}: was made by another model ({record.parents[0].name} "
                f"{record.parents[0].version}), whose vectors cannot be compared with this one's: all rows "
                "must be embedded again. Leave --since out"
            )
        different = [
            f"{key}: {getattr(record.config, key)!r}"
            for key in fingerprint
            if getattr(record.config, key) != fingerprint[key]
        ]
        if different:
            raise BoomError(
                f"--since {uri}: was made with {', '.join(different)}. Use the same, or leave --since out"
            )
        for name in record.files:
            if name.endswith(".parquet"):
                with storage.open_input(storage.join(uri, name)) as file:
                    tables.append(pq.read_table(file, columns=["id", TEXT_HASH]))
    if not tables:
        return Known(np.empty(0, np.uint64), np.empty(0, np.uint64), [])
    table = pa.concat_tables(tables)
    hashes = id_hashes(table["id"])
    order = np.argsort(hashes)
    return Known(np.unique(keys(table)), hashes[order], table["id"].take(pa.array(order)).to_pylist())


def survey(source: Source, known: Known) -> Survey:
    """Read every row once.

    Raises:
        BoomError: if ids are null or there twice, or texts are null, no text, or empty and that is refused.
    """
    tallies = _tallies(source, known)
    total = sum(tally["all"] for tally in tallies)
    if not total:
        raise BoomError(
            f"{source.uri}: holds no rows" + (" that pass the filter" if source.options.filter else "")
        )
    _refuse_bad_rows(source, tallies, total)
    ids = np.concatenate([np.frombuffer(tally["ids"], np.uint64) for tally in tallies])
    _refuse_repeated_ids(source, ids)
    counts = _limited([tally["new"] for tally in tallies], source.options.limit)
    content = artifacts.fingerprint([sum(tally["content"] for tally in tallies) % (1 << 64), counts])
    missing = np.flatnonzero(~np.isin(known.ids, ids)).tolist() if source.options.limit is None else []
    gone = [known.names[index] for index in missing]
    return Survey(counts, total - sum(tally["new"] for tally in tallies), gone, content)


def _tallies(source: Source, known: Known) -> list[dict[str, Any]]:
    shared = ray.put(known.keys)
    items = [{"unit": unit.number} for unit in source.units]
    if not items:
        return []

    def tally(batch: Any) -> Any:
        total = _tally_unit(source, source.units[int(batch["unit"][0])], ray.get(shared))
        return {key: [value] for key, value in total.items()}

    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    found = dataset.map_batches(tally, batch_size=1, num_cpus=0.5).take_all()
    return sorted(found, key=lambda one: one["unit"])


def _tally_unit(source: Source, unit: Unit, known: np.ndarray) -> dict[str, Any]:
    """One row that sums up a unit."""
    total: dict[str, Any] = dict.fromkeys(("all", "new", "null_ids", "null_texts", "empty", "content"), 0)
    examples: dict[str, list[str]] = {"null_texts": [], "empty": []}
    ids = []
    for table in source.read(unit):
        of_rows = keys(table)
        total["all"] += len(table)
        total["new"] += int((~np.isin(of_rows, known)).sum())
        total["null_ids"] += table["id"].null_count
        total["null_texts"] += table["text"].null_count
        for name, text in (("null_texts", None), ("empty", "")):
            which = [key for key, own in _pairs(table) if own == text and own is not True]
            total["empty"] += len(which) if name == "empty" else 0
            examples[name] += [repr(key) for key in which[:EXAMPLES]]
        total["content"] += int(of_rows.sum(dtype=np.uint64))
        ids.append(id_hashes(table["id"]))
    total["content"] %= 1 << 62
    hashes = np.concatenate(ids).tobytes() if ids else b""
    kept = {f"{name}_examples": ", ".join(found[:EXAMPLES]) for name, found in examples.items()}
    return {"unit": unit.number, **total, **kept, "ids": hashes}


def _pairs(table: pa.Table) -> Iterator[tuple[Any, Any]]:
    return zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)


def _refuse_bad_rows(source: Source, tallies: list[dict[str, Any]], total: int) -> None:
    options = source.options

    def counted(name: str) -> tuple[int, str]:
        examples = [
            part for tally in tallies for part in tally.get(f"{name}_examples", "").split(", ") if part
        ]
        count = sum(tally[name] for tally in tallies)
        return count, ", ".join(examples[:EXAMPLES]) + (", …" if count > EXAMPLES else "")

    problems = []
    null_ids = sum(tally["null_ids"] for tally in tallies)
    if null_ids:
        problems.append(f"{null_ids} ids in {options.id_column!r} are null or not {source.id_type}")
    count, which = counted("null_texts")
    if count:
        problems.append(f"{count} texts in {options.text_column!r} are null or not text: id {which}")
    count, which = counted("empty")
    if count and options.empty_text == "refuse":
        problems.append(
            f"{count} texts in {options.text_column!r} are empty (allow with --empty-text embed): id {which}"
        )
    if problems:
        raise BoomError.of(problems, f"{source.uri}: mend or drop these of its {total} rows:")


def _refuse_repeated_ids(source: Source, ids: np.ndarray) -> None:
    values, counts = np.unique(ids, return_counts=True)
    repeated = values[counts > 1]
    if not len(repeated):
        return
    examples: list[str] = []
    for unit in source.units:
        for table in source.read(unit):
            hit = np.isin(id_hashes(table["id"]), repeated)
            examples += [repr(name) for name in table["id"].filter(pa.array(hit)).to_pylist()]
        if len(set(examples)) >= EXAMPLES:
            break
    which = ", ".join(list(dict.fromkeys(examples))[:EXAMPLES]) + (", …" if len(repeated) > EXAMPLES else "")
    raise BoomError(
        f"{source.uri}: {len(repeated)} ids in {source.options.id_column!r} are there more than once: "
        f"{which}. Drop the repeated rows, or name another --id-column"
    )


def _limited(counts: list[int], limit: int | None) -> list[int]:
    """Rows of each unit that are left when reading ends after `limit`."""
    left = sum(counts) if limit is None else limit
    kept = []
    for count in counts:
        kept.append(min(count, left))
        left -= kept[-1]
    return kept

"""The corpus: every task's rows, checked once and stored as Arrow files that any worker maps into memory.

Bad rows go to `quarantine.jsonl` with their place and the reason. The fingerprint covers the content of the
source files and what the recipe says of each task, so that a corpus that changed under a name is noticed.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import xxhash
from datasets import Dataset

from boom_ray import artifacts, storage
from boom_ray.artifacts import staging
from boom_ray.artifacts.record import Record
from boom_ray.data import rows
from boom_ray.errors import BoomError
from boom_ray.recipe import Data, Task
from boom_ray.runtime.console import console

ROWS_PER_WRITE = 4096
EXAMPLES = 3


@dataclass
class _Count:
    """What became of the rows of one task."""

    rows: int = 0
    quarantined: int = 0
    duplicates: int = 0
    dropped_negatives: int = 0
    examples: list[str] = field(default_factory=list)


def prepare(data: Data, target: str, name: str) -> Record:
    """Read, check and store the corpus, unless that was done before.

    Args:
        data: The recipe's section.
        target: URI of the corpus artifact.
        name: Name of the record.

    Returns:
        The record; `config["tasks"]` maps each task to its type, prompt and counts.

    Raises:
        BoomError: if a task has no usable row, too many bad ones, or the corpus at `target` was made from
            others.
    """
    existing = artifacts.read_record(target)
    known = existing.config["sources"] if existing else []
    sources = [source for task in data.tasks for source in _sources(task, known)]
    identities = {task.name: _identity(task, data, sources) for task in data.tasks}
    if existing:
        _refuse_changes(target, existing.config["identities"], identities)
        return existing
    started = time.time()
    with staging.staged(target) as stage:
        counts = {}
        with open(os.path.join(stage.local, "quarantine.jsonl"), "w", encoding="utf-8") as quarantine:
            for task in data.tasks:
                counts[task.name] = _store_task(task, stage.local, quarantine)
                _check_quality(task, counts[task.name], data.max_bad_fraction)
        config = {
            "tasks": {
                task.name: {"type": task.type, "prompt": data.prompt(task)}
                | {key: value for key, value in vars(counts[task.name]).items() if key != "examples"}
                for task in data.tasks
            },
            "identities": identities,
            "sources": sources,
        }
        return stage.commit(
            Record(
                kind="corpus",
                name=name,
                version="corpus",
                fingerprint=artifacts.fingerprint(identities),
                config=config,
                times={"corpus": (started, time.time())},
            )
        )


def expected_rows(data: Data, target: str) -> dict[str, int]:
    """Rows of each task: as counted at `target`, else as the recipe expects, else as its files hold.

    Raises:
        BoomError: if the files of a task cannot be read, and the recipe says nothing.
    """
    known = artifacts.read_record(target)
    if known:
        return {task: counts["rows"] for task, counts in known.config["tasks"].items()}
    sizes = {}
    for task in data.tasks:
        size = task.expected_rows or sum(rows.count_rows(uri) for uri in rows.data_files(task.path))
        sizes[task.name] = min(size, task.limit or size)
    return sizes


def load_task(corpus: str, task: str) -> Dataset:
    """The rows of one task, mapped into memory, in the order of their source files.

    Args:
        corpus: URI of the corpus artifact; a remote one is copied to this machine once.
    """
    return Dataset.from_file(os.path.join(storage.local_directory(corpus), f"{task}.arrow"))


def _sources(task: Task, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Identities of a task's files; a corpus that is stored does not need those it was made from any more.

    Args:
        known: The identities of all files as they were when the corpus was stored.
    """
    before = {source["uri"]: source for source in known if source["task"] == task.name}
    try:
        uris = rows.data_files(task.path)
    except BoomError as gone:
        if not before:
            raise
        console.print(f"corpus: {task.name}: {gone}. The rows that were stored of it are used")
        return list(before.values())
    return [_source(task.name, uri, before.get(uri, {})) for uri in uris]


def _source(task: str, uri: str, seen: dict[str, Any]) -> dict[str, Any]:
    """Identity of one source file; it is read only if size or time changed since it was last seen."""
    fs, path = storage.filesystem(uri)
    info = fs.get_file_info(path)
    if (seen.get("size"), seen.get("mtime_ns")) == (info.size, info.mtime_ns):
        return seen
    content = artifacts.hash_file(uri).xxh3_128
    return {"task": task, "uri": uri, "size": info.size, "mtime_ns": info.mtime_ns, "xxh3_128": content}


def _identity(task: Task, data: Data, sources: list[dict[str, Any]]) -> dict[str, Any]:
    content = [source["xxh3_128"] for source in sources if source["task"] == task.name]
    return {"type": task.type, "prompt": data.prompt(task), "limit": task.limit, "content": content}


def _refuse_changes(target: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [
        f"{name}: {what}"
        for name in sorted(before.keys() | now.keys())
        if (what := _difference(before.get(name), now.get(name)))
    ]
    if changed:
        raise BoomError.of(changed, f"{target}: the corpus is not the one this run began with. "
                           "Give the recipe another name, or restore:")  # fmt: skip


def _difference(before: dict[str, Any] | None, now: dict[str, Any] | None) -> str:
    if before is None or now is None:
        return "new task" if before is None else "task removed"
    return ", ".join(f"{key} changed" for key in before if before[key] != now[key])


def _store_task(task: Task, directory: str, quarantine: Any) -> _Count:
    count = _Count()
    path = os.path.join(directory, f"{task.name}.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, rows.SCHEMA) as writer:
        pending: list[dict[str, Any]] = []
        for row in islice(_usable_rows(task, count, quarantine), task.limit):
            pending.append(row)
            if len(pending) == ROWS_PER_WRITE:
                writer.write_batch(pa.RecordBatch.from_pylist(pending, rows.SCHEMA))
                pending = []
        writer.write_batch(pa.RecordBatch.from_pylist(pending, rows.SCHEMA))
    return count


def _usable_rows(task: Task, count: _Count, quarantine: Any) -> Iterator[dict[str, Any]]:
    seen: set[int] = set()
    for uri in rows.data_files(task.path):
        for place, raw in rows.read_raw(uri):
            try:
                if isinstance(raw, rows.BadRow):
                    raise raw
                row, dropped = rows.normalize(raw)
            except rows.BadRow as reason:
                count.quarantined += 1
                count.examples.append(f"{place}: {reason}")
                quarantine.write(
                    json.dumps({"task": task.name, "place": place, "reason": str(reason)}) + "\n"
                )
                continue
            key = xxhash.xxh3_64_intdigest(repr((row["query"], row["pos"], row["neg"])).encode())
            if key in seen:
                count.duplicates += 1
                continue
            seen.add(key)
            count.rows += 1
            count.dropped_negatives += dropped
            yield row


def _check_quality(task: Task, count: _Count, max_bad_fraction: float) -> None:
    total = count.rows + count.quarantined + count.duplicates
    if count.rows and count.quarantined <= max_bad_fraction * total:
        return
    if not total:
        raise BoomError(f"task {task.name}: {task.path} holds no rows")
    heading = (
        f"task {task.name}: {count.quarantined} of {total} rows are bad, allowed {max_bad_fraction:.1%} "
        "(data.max_bad_fraction). Mend the rows, or allow more:"
    )
    more = [f"… and {count.quarantined - EXAMPLES} more"] if count.quarantined > EXAMPLES else []
    raise BoomError.of(count.examples[:EXAMPLES] + more, heading)

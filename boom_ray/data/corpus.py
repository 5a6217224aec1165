"""The corpus: the rows of every task, checked once and stored as Arrow files that workers map into memory.

Bad rows go to `quarantine.jsonl` with their location and the reason. A sidecar of each task lists the
positives of queries that occur in several rows (`answers.py`). The fingerprint covers the content of
the source files and the settings of every task, so that a corpus that changed under a name is noticed.
"""

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
from datasets import Dataset

from boom_ray import artifacts, storage
from boom_ray.artifacts import CorpusRecord, staging
from boom_ray.artifacts.contents import CorpusConfig, StoredSource, TaskIdentity, TaskRows
from boom_ray.data import answers, rows, training_row
from boom_ray.data.answers import Answers, hash_of
from boom_ray.data.training_row import SCHEMA, BadRow
from boom_ray.errors import BoomError, ConflictError, InputError
from boom_ray.recipe import OWN_NEGATIVES, Data, Task

ROWS_PER_WRITE = 4096
EXAMPLES = 3
logger = logging.getLogger(__name__)


@dataclass
class _Counts:
    """Counts of the rows of one task, the reasons for quarantine, and the columns found."""

    rows: int = 0
    quarantined: int = 0
    duplicates: int = 0
    dropped_negatives: int = 0
    shared_queries: int = 0
    reasons: list[str] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)

    def of(self, task: Task, data: Data) -> TaskRows:
        """The counts as the record keeps them."""
        return TaskRows(
            type=task.type,
            prompt=data.prompt(task),
            rows=self.rows,
            quarantined=self.quarantined,
            duplicates=self.duplicates,
            dropped_negatives=self.dropped_negatives,
            shared_queries=self.shared_queries,
        )


def prepare(data: Data, target: str, name: str) -> CorpusRecord:
    """Read, check and store the corpus, unless that was done before.

    Args:
        data: The recipe's section.
        target: URI of the corpus artifact.
        name: Name of the record.

    Returns:
        The record, with the counts of every task.

    Raises:
        InputError: if a task has no usable row, or too many bad ones.
        ConflictError: if the corpus at `target` was made from other rows or settings.
    """
    existing = artifacts.find(target, CorpusRecord)
    stored = existing.config.sources if existing else []
    sources = [source for task in data.tasks for source in _sources(task, stored)]
    identities = {task.name: _identity(task, data, sources) for task in data.tasks}
    if existing:
        _refuse_changes(target, existing.config.identities, identities)
        return existing
    started = time.time()
    with staging.staged(target) as stage:
        counts = {}
        with open(os.path.join(stage.local, "quarantine.jsonl"), "w", encoding="utf-8") as quarantine:
            for task in data.tasks:
                counts[task.name] = _store_task(task, data, stage.local, quarantine)
                _check_quality(task, counts[task.name], data.max_bad_fraction)
        tasks = {task.name: counts[task.name].of(task, data) for task in data.tasks}
        content = {task: identity.model_dump() for task, identity in identities.items()}
        return stage.commit(
            CorpusRecord(
                name=name,
                version="corpus",
                fingerprint=artifacts.fingerprint(content),
                config=CorpusConfig(tasks=tasks, identities=identities, sources=sources),
                times={"corpus": (started, time.time())},
            )
        )


def expected_rows(data: Data, target: str) -> dict[str, int]:
    """Rows of each task: as counted at `target`, else as the recipe expects, else as its files hold.

    Raises:
        BoomError: if the files of a task cannot be read, and the recipe does not state its rows.
    """
    stored = artifacts.find(target, CorpusRecord)
    if stored:
        return {task: counts.rows for task, counts in stored.config.tasks.items()}
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


def load_answers(corpus: str, task: Task) -> Answers:
    """The answers of the queries of one task, mapped into memory.

    Args:
        corpus: URI of the corpus artifact; a remote one is copied to this machine once.
    """
    path = os.path.join(storage.local_directory(corpus), f"{task.name}.answers")
    return answers.read(path, task.type)


def _sources(task: Task, stored: list[StoredSource]) -> list[StoredSource]:
    """The source files of a task; a stored corpus does not need its source files any more.

    Args:
        stored: All source files as they were when the corpus was stored.
    """
    before = {source.uri: source for source in stored if source.task == task.name}
    try:
        uris = rows.data_files(task.path)
    except BoomError as error:
        if not before:
            raise
        logger.info("corpus: %s: %s. Its stored rows are used", task.name, error)
        return list(before.values())
    return [_source(task.name, uri, before.get(uri)) for uri in uris]


def _source(task: str, uri: str, before: StoredSource | None) -> StoredSource:
    """One source file; it is read only if its size or time changed since it was stored."""
    fs, path = storage.filesystem(uri)
    info = fs.get_file_info(path)
    if before and (before.size, before.mtime_ns) == (info.size, info.mtime_ns):
        return before
    content = artifacts.hash_file(uri).xxh3_128
    return StoredSource(task=task, uri=uri, size=info.size, mtime_ns=info.mtime_ns or 0, xxh3_128=content)


def _identity(task: Task, data: Data, sources: list[StoredSource]) -> TaskIdentity:
    content = [source.xxh3_128 for source in sources if source.task == task.name]
    return TaskIdentity(
        type=task.type,
        prompt=data.prompt(task),
        limit=task.limit,
        content=content,
        document_prompt=data.document_prompt,
    )


def _refuse_changes(target: str, before: dict[str, TaskIdentity], now: dict[str, TaskIdentity]) -> None:
    changed = [
        f"{name}: {what}"
        for name in sorted(before.keys() | now.keys())
        if (what := _difference(before.get(name), now.get(name)))
    ]
    if changed:
        raise ConflictError.of(changed, f"{target}: the corpus is not the one this run began with. "
                               "Give the recipe another name, or restore:")  # fmt: skip


def _difference(before: TaskIdentity | None, now: TaskIdentity | None) -> str:
    if before is None or now is None:
        return "new task" if before is None else "task removed"
    return ", ".join(
        f"{key} changed" for key in TaskIdentity.model_fields if getattr(before, key) != getattr(now, key)
    )


def _store_task(task: Task, data: Data, directory: str, quarantine: Any) -> _Counts:
    counts, collector = _Counts(), answers.Collector(task.type)
    instruction = task.instruction or data.instruction
    path = os.path.join(directory, f"{task.name}.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        pending: list[dict[str, Any]] = []
        for row in islice(_usable_rows(task, instruction, counts, quarantine), task.limit):
            collector.add(row)
            pending.append(row)
            if len(pending) == ROWS_PER_WRITE:
                writer.write_batch(pa.RecordBatch.from_pylist(pending, SCHEMA))
                pending = []
        writer.write_batch(pa.RecordBatch.from_pylist(pending, SCHEMA))
    _store_answers(task, collector, directory, counts)
    ignored = sorted(name for name in counts.columns if not training_row.understood(name))
    if ignored:
        logger.info("corpus: %s: columns that training does not use: %s", task.name, ", ".join(ignored))
    return counts


def _store_answers(task: Task, collector: answers.Collector, directory: str, counts: _Counts) -> None:
    """Write the sidecar file of a task, and count what it changes."""
    found = collector.answers()
    answers.write(os.path.join(directory, f"{task.name}.answers"), found)
    counts.shared_queries = len(found.keys)
    if not counts.shared_queries:
        return
    num_dropped, num_bare = answers.dropped(load_task(directory, task.name), found, collector.queries)
    counts.dropped_negatives += num_dropped
    if num_bare and task.type in OWN_NEGATIVES:
        logger.warning(
            "corpus: %s: %d rows teach nothing: all their negatives are positives of the same query in other "
            "rows. Check the labels of queries that occur several times", task.name, num_bare
        )  # fmt: skip


def _usable_rows(task: Task, instruction: str, counts: _Counts, quarantine: Any) -> Iterator[dict[str, Any]]:
    seen: set[int] = set()
    for uri in rows.data_files(task.path):
        for location, raw in rows.read_raw(uri):
            try:
                row, num_dropped = _checked(raw, task, counts)
            except BadRow as reason:
                counts.quarantined += 1
                counts.reasons.append(f"{location}: {reason}")
                entry = {"task": task.name, "place": location, "reason": str(reason)}
                quarantine.write(json.dumps(entry) + "\n")
                continue
            if row["prompt"] == instruction:
                row["prompt"] = None  # the same text as without it
            key = hash_of(repr((row["prompt"], row["query"], row["pos"], row["neg"])))
            if key in seen:
                counts.duplicates += 1
                continue
            seen.add(key)
            counts.rows += 1
            counts.dropped_negatives += num_dropped
            yield row


def _checked(raw: dict[str, Any] | BadRow, task: Task, counts: _Counts) -> tuple[dict[str, Any], int]:
    """A row as `training_row.normalize` returns it, if its task can use it."""
    if isinstance(raw, BadRow):
        raise raw
    counts.columns.update(raw)
    row, num_dropped = training_row.normalize(raw)
    if task.type in OWN_NEGATIVES and not row["neg"]:
        raise BadRow(f"neg is missing, empty, or equal to pos: a {task.type} row needs its own negatives")
    return row, num_dropped


def _check_quality(task: Task, counts: _Counts, max_bad_fraction: float) -> None:
    total = counts.rows + counts.quarantined + counts.duplicates
    if counts.rows and counts.quarantined <= max_bad_fraction * total:
        return
    if not total:
        raise InputError(f"task {task.name}: {task.path} holds no rows")
    heading = (
        f"task {task.name}: {counts.quarantined} of {total} rows are bad, allowed {max_bad_fraction:.1%} "
        "(data.max_bad_fraction). Fix the rows, or allow more:"
    )
    more = [f"… and {counts.quarantined - EXAMPLES} more"] if counts.quarantined > EXAMPLES else []
    raise InputError.of(counts.reasons[:EXAMPLES] + more, heading)

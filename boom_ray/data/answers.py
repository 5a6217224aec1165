"""The answers of every query: its positives over the whole task, none of which is ever used as a negative.

The same query can occur in several rows, each with one of its positives: a positive of one row is then an
answer of the others too. A sidecar file of each task, `TASK.answers`, lists the answers of the queries for
which one of their rows does not. It holds 64-bit hashes of texts and is mapped into memory, so
that its size does not depend on the length of texts, and the ranks of a node share it.

Two rows have the same query if its text and their own prompts are equal: another instruction can have other
positives. In `sts` tasks, both texts of a pair are positives of each other, and every text is one of itself.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import xxhash

from boom_ray.recipe import TaskType

if TYPE_CHECKING:
    from datasets import Dataset

ROWS_PER_READ = 4096
COLUMNS = ["query", "pos", "neg", "prompt", "answers"]


def hash_of(text: str) -> int:
    """Hash of a text, 64 bits."""
    return xxhash.xxh3_64_intdigest(text.encode())


def hashes_of(texts: Sequence[str]) -> np.ndarray:
    """[n] uint64, hashes of n texts."""
    return np.fromiter(map(hash_of, texts), np.uint64, len(texts))


def key_of(prompt: str | None, query: str) -> int:
    """Hash of a query together with its row's own prompt, 64 bits."""
    return xxhash.xxh3_64_intdigest(query.encode(), seed=0 if prompt is None else hash_of(prompt))


def stated(row: dict[str, Any], type: TaskType) -> list[str]:
    """The distinct answers of a row's query that the row itself states."""
    own = [row["query"]] if type == "sts" else []
    return list(dict.fromkeys([*row["pos"], *(row["answers"] or ()), *own]))


def pairs(row: dict[str, Any], type: TaskType) -> Iterator[tuple[int, str]]:
    """Key of a query and an answer of it, for all that a row states."""
    prompt, query = row["prompt"], row["query"]
    key = key_of(prompt, query)
    for text in stated(row, type):
        yield key, text
        if type == "sts":
            yield key_of(prompt, text), query


@dataclass(frozen=True)
class Answers:
    """The answers of the queries of one task.

    Attributes:
        type: Type of the task.
        keys: [k] uint64, sorted keys of the queries that have answers which one of their rows does not state.
        offsets: [k + 1] int64, where the answers of each of them begin in `texts`.
        texts: uint64, hashes of their answers, sorted within each query.
    """

    type: TaskType
    keys: np.ndarray
    offsets: np.ndarray
    texts: np.ndarray

    def of(self, row: dict[str, Any]) -> np.ndarray:
        """Sorted hashes (uint64, at least one) of the answers of a row's query in all rows."""
        key = np.uint64(key_of(row["prompt"], row["query"]))
        index = np.searchsorted(self.keys, key)
        if index < len(self.keys) and self.keys[index] == key:
            return self.texts[self.offsets[index] : self.offsets[index + 1]]
        return np.sort(hashes_of(stated(row, self.type)))


def contains(right: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """A mask of the hashes (any shape) that are among sorted hashes, of which there is at least one."""
    return right[np.searchsorted(right, hashes).clip(max=len(right) - 1)] == hashes


class Collector:
    """Collects the answers of a task from its rows, in 8 bytes for each query and 16 for each answer."""

    def __init__(self, type: TaskType) -> None:
        self.type = type
        self.queries, self.num_stated = array("Q"), array("Q")  # per row: its key and number of answers
        self._keys, self._texts = array("Q"), array("Q")  # per answer

    def add(self, row: dict[str, Any]) -> None:
        """Add the next row of the task."""
        self.queries.append(key_of(row["prompt"], row["query"]))
        self.num_stated.append(len(stated(row, self.type)))
        for key, text in pairs(row, self.type):
            self._keys.append(key)
            self._texts.append(hash_of(text))

    def answers(self) -> Answers:
        """The answers of all queries for which a row of theirs does not state all."""
        keys, texts = np.array(self._keys, np.uint64), np.array(self._texts, np.uint64)
        order = np.lexsort((texts, keys))
        keys, texts = keys[order], texts[order]
        first = np.ones(len(keys), dtype=bool)
        first[1:] = (keys[1:] != keys[:-1]) | (texts[1:] != texts[:-1])
        keys, texts = keys[first], texts[first]
        queries, inverse = np.unique(np.array(self.queries, np.uint64), return_inverse=True)
        fewest = np.full(len(queries), np.iinfo(np.uint64).max, dtype=np.uint64)
        np.minimum.at(fewest, inverse, np.array(self.num_stated, np.uint64))
        begin = np.searchsorted(keys, queries)
        counts = np.searchsorted(keys, queries, side="right") - begin
        wanted = counts > fewest.astype(np.int64)
        kept = np.isin(keys, queries[wanted])
        offsets = np.concatenate([[0], np.cumsum(counts[wanted])])
        return Answers(self.type, queries[wanted], offsets, texts[kept])


def write(path: str, answers: Answers) -> None:
    """Write the sidecar file of a task: one Arrow batch, which `read` maps into memory."""
    lists = pa.LargeListArray.from_arrays(pa.array(answers.offsets, pa.int64()), pa.array(answers.texts))
    batch = pa.record_batch({"query": pa.array(answers.keys), "answers": lists})
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def read(path: str, type: TaskType) -> Answers:
    """The answers in a sidecar file, mapped into memory.

    Args:
        type: Type of the task.
    """
    batch = pa.ipc.open_file(pa.memory_map(path)).get_batch(0)
    keys, lists = batch.columns
    return Answers(type, keys.to_numpy(), lists.offsets.to_numpy(), lists.values.to_numpy())


def dropped(dataset: "Dataset", answers: Answers, queries: Sequence[int]) -> tuple[int, int]:
    """Negatives of a task that are never used, since they are positives of the query in other rows.

    Args:
        queries: Key of each row of the task.

    Returns:
        Number of these negatives, and of the rows that had negatives and keep none.
    """
    shared = np.flatnonzero(np.isin(np.array(queries, np.uint64), answers.keys))
    num_dropped = num_bare = 0
    for row in _rows(dataset, shared):
        wrong = contains(answers.of(row), hashes_of(row["neg"]))
        num_dropped += int(wrong.sum())
        num_bare += bool(len(wrong) and wrong.all())
    return num_dropped, num_bare


def further(dataset: "Dataset", answers: Answers, sample: np.ndarray) -> list[list[str]]:
    """The answers that other rows state for the queries of sampled rows.

    Reads the whole task, and holds in memory only the answers of queries that several rows share.

    Args:
        sample: Indices of the sampled rows.

    Returns:
        Per sampled row, the texts that are not among its own positives, sorted.
    """
    found: dict[int, set[str]] = {}
    for row in _rows(dataset, sample):
        key = key_of(row["prompt"], row["query"])
        if np.isin(np.uint64(key), answers.keys):
            found[key] = set()
    if found:
        for row in _rows(dataset, np.arange(len(dataset))):
            for key, text in pairs(row, answers.type):
                if key in found:
                    found[key].add(text)
    return [
        sorted(
            found.get(key_of(row["prompt"], row["query"]), {*(row["answers"] or ())}).difference(row["pos"])
        )
        for row in _rows(dataset, sample)
    ]


def _rows(dataset: "Dataset", indices: np.ndarray) -> Iterator[dict[str, Any]]:
    chosen = dataset.select_columns(COLUMNS).select(indices)
    for batch in chosen.iter(ROWS_PER_READ):
        columns = batch.values()
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*columns, strict=True))

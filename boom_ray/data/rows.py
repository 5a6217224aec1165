"""Rows of contrastive data in files: read with their location, checked, and normalized to one schema.

The schema is FlagEmbedding's (`query`, `pos`, `neg`, optional `prompt`, `pos_scores`, `neg_scores`), because
the public data of the paper uses it. The column names of sentence-transformers and CornStack are read too.
"""

import fnmatch
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from boom_ray import storage
from boom_ray.errors import InputError, NotFoundError

TEXTS = pa.list_(pa.string())
SCORES = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("query", pa.string()),
        ("pos", TEXTS),
        ("neg", TEXTS),
        ("prompt", pa.string()),
        ("pos_scores", SCORES),
        ("neg_scores", SCORES),
    ]
)
ALIASES = {
    "query": ("query", "anchor"),
    "pos": ("pos", "positive", "document"),
    "neg": ("neg", "negatives"),
}
SUFFIXES = (".jsonl", ".json", ".parquet")


class BadRow(ValueError):
    """The reason why one row cannot be used."""


def data_files(uri: str, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """The data files at a URI, sorted.

    Args:
        uri: One file, a directory with everything below it, or a pattern of file names (`…/data/nq-*`).
        suffixes: Suffixes of data files.

    Raises:
        NotFoundError: if there are none.
    """
    if "*" in storage.name_of(uri):
        parent = storage.parent_of(uri)
        names = fnmatch.filter(storage.list_names(parent), storage.name_of(uri))
        files = [storage.join(parent, name) for name in names if name.endswith(suffixes)]
    elif storage.is_file(uri):
        return [uri]
    else:
        files = [storage.join(uri, name) for name in storage.list_files(uri) if name.endswith(suffixes)]
    if not files:
        raise NotFoundError(f"{uri}: no data files. Expected {' or '.join(suffixes)} files")
    return files


def buffered(file: pa.NativeFile) -> io.BufferedReader:
    """A buffered reader for reading line by line; each read of the store is 4 MiB."""
    return io.BufferedReader(file, 1 << 22)


def count_rows(uri: str) -> int:
    """Number of rows of a file, good or bad, from its metadata or its line breaks."""
    with storage.open_input(uri) as file:
        if uri.endswith(".parquet"):
            return pq.ParquetFile(file).metadata.num_rows
        return sum(1 for line in buffered(file) if line.strip())


def read_raw(uri: str) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """Every row of a file with its location (`file:line`), or the reason why it is unreadable."""
    with storage.open_input(uri) as file:
        if uri.endswith(".parquet"):
            yield from _read_parquet(uri, file)
        else:
            yield from _read_json_lines(uri, file)


def _read_parquet(uri: str, file: pa.NativeFile) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{uri}:{number}", row
    except pa.ArrowInvalid as error:
        raise InputError(f"{uri}: not a readable parquet file: {error}") from error


def _read_json_lines(uri: str, file: pa.NativeFile) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    for number, line in enumerate(buffered(file), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except UnicodeDecodeError:
            yield f"{uri}:{number}", BadRow("invalid UTF-8")
        except ValueError as error:
            yield f"{uri}:{number}", BadRow(f"invalid JSON: {error}")
        else:
            yield f"{uri}:{number}", row if isinstance(row, dict) else BadRow("not a JSON object")


def normalize(raw: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Check one row and normalize it to `SCHEMA`.

    Returns:
        The row, and the number of negatives dropped because they repeat one or equal a positive.

    Raises:
        BadRow: with the reason.
    """
    query = _first(raw, "query")
    if not isinstance(query, str):
        raise BadRow("query is missing or not a text")
    _texts("query", query)
    positives = list(dict.fromkeys(_texts("pos", _first(raw, "pos"))))
    if not positives:
        raise BadRow("pos is missing or empty")
    given = _texts("neg", _negatives(raw))
    scores = _scores(raw, "pos_scores", len(positives)), _scores(raw, "neg_scores", len(given))
    seen, kept = set(positives), []
    for index, text in enumerate(given):
        if text not in seen:
            seen.add(text)
            kept.append(index)
    prompt = raw.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise BadRow("prompt is not a text")
    row = {
        "query": query,
        "pos": positives,
        "neg": [given[index] for index in kept],
        "prompt": prompt,
        "pos_scores": scores[0],
        "neg_scores": scores[1] and [scores[1][index] for index in kept],
    }
    return row, len(given) - len(kept)


def _first(raw: dict[str, Any], key: str) -> Any:
    return next((raw[alias] for alias in ALIASES[key] if raw.get(alias) is not None), None)


def _negatives(raw: dict[str, Any]) -> Any:
    """`neg`, an alias of it, or the numbered columns `negative`, `negative_1`, … of sentence-transformers."""
    listed = _first(raw, "neg")
    if listed is not None:
        return listed
    return [raw[key] for key in raw if re.fullmatch(r"negative(_\d+)?", key) and raw[key] is not None]


def _texts(key: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRow(f"{key} is not a list of texts")
    if not all(text.strip() for text in texts):
        raise BadRow(f"{key} holds an empty text")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{key} holds half of a surrogate pair") from error
    return texts


def _scores(raw: dict[str, Any], key: str, expected: int) -> list[float] | None:
    scores = raw.get(key)
    if scores is None:
        return None
    if not isinstance(scores, list) or not all(isinstance(score, int | float) for score in scores):
        raise BadRow(f"{key} is not a list of numbers")
    if len(scores) != expected:
        raise BadRow(f"{key} has {len(scores)} numbers for {expected} texts")
    return [float(score) for score in scores]

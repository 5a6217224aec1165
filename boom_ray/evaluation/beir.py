"""Tasks in BEIR format: `corpus.jsonl`, `queries.jsonl`, `qrels/*.tsv`."""

import json
from typing import Any

from boom_ray import storage
from boom_ray.errors import BoomError


def read_beir(task: str) -> dict[str, Any]:
    """One BEIR directory as the evaluator takes it: `corpus`, `queries` and `relevant_docs`.

    Raises:
        BoomError: if a file is missing, or a line is not what it should be.
    """
    try:
        documents = _read_lines(storage.join(task, "corpus.jsonl"))
        corpus = {row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in documents}
        queries = {row["_id"]: row["text"] for row in _read_lines(storage.join(task, "queries.jsonl"))}
        relevant = {query: set(documents) for query, documents in read_judgements(task).items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, BoomError):
            raise
        raise BoomError(f"{task}: not in BEIR format: {type(error).__name__}: {error}") from error
    return {"corpus": corpus, "queries": queries, "relevant_docs": relevant}


def read_judgements(task: str) -> dict[str, dict[str, int]]:
    """The positive grades of a BEIR directory: query id -> document id -> grade.

    Raises:
        BoomError: if there is no file of them.
        ValueError: if a line is not what it should be.
    """
    grades: dict[str, dict[str, int]] = {}
    for query, document, grade in _read_qrels(task):
        if int(grade) > 0:
            grades.setdefault(query, {})[document] = int(grade)
    return grades


def _read_lines(uri: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_bytes(uri).splitlines() if line.strip()]


def _read_qrels(task: str) -> list[list[str]]:
    folder = storage.join(task, "qrels")
    names = [name for name in storage.list_names(folder) if name.endswith(".tsv")]
    if not names:
        raise BoomError(f"{folder}: no .tsv file there")
    chosen = ["test.tsv"] if "test.tsv" in names else names
    lines = [
        line
        for name in chosen
        for line in storage.read_bytes(storage.join(folder, name)).decode().splitlines()
    ]
    return [line.split("\t") for line in lines if line.strip() and not line.startswith("query-id")]

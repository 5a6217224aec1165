"""Tasks in BEIR format: `corpus.jsonl`, `queries.jsonl`, `qrels/*.tsv`."""

import json
from typing import Any, TypedDict

from boom_ray import storage
from boom_ray.errors import BoomError, InputError, NotFoundError


class BeirTask(TypedDict):
    """A retrieval task as the evaluator of sentence-transformers takes it.

    `corpus` and `queries` map ids to texts, `relevant_docs` query ids to the ids of their positives.
    """

    corpus: dict[str, str]
    queries: dict[str, str]
    relevant_docs: dict[str, set[str]]


def read_beir(task: str) -> BeirTask:
    """Read one BEIR directory.

    Raises:
        NotFoundError: if a file is missing.
        InputError: if a line is not in BEIR format.
    """
    try:
        documents = _read_lines(storage.join(task, "corpus.jsonl"))
        corpus = {row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in documents}
        queries = {row["_id"]: row["text"] for row in _read_lines(storage.join(task, "queries.jsonl"))}
        relevant = {query: set(documents) for query, documents in read_judgements(task).items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, BoomError):  # a ValueError too, but one that has its message
            raise
        raise InputError(f"{task}: not in BEIR format: {type(error).__name__}: {error}") from error
    return BeirTask(corpus=corpus, queries=queries, relevant_docs=relevant)


def read_judgements(task: str) -> dict[str, dict[str, int]]:
    """The positive grades of a BEIR directory: query id -> document id -> grade.

    `qrels/test.tsv` if it exists, otherwise all `.tsv` files in `qrels`.

    Raises:
        NotFoundError: if there is no such file.
        ValueError: if a line does not have the three columns query, document and grade.
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
        raise NotFoundError(f"{folder}: no .tsv file with relevance judgements")
    selected = ["test.tsv"] if "test.tsv" in names else names
    lines = [
        line
        for name in selected
        for line in storage.read_bytes(storage.join(folder, name)).decode().splitlines()
    ]
    return [line.split("\t") for line in lines if line.strip() and not line.startswith("query-id")]

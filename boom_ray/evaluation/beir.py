"""Tasks in BEIR format: `corpus.jsonl`, `queries.jsonl`, `qrels/*.tsv`."""

import json
from typing import Any, TypedDict

from boom_ray import storage
from boom_ray.errors import InputError, NotFoundError


class BeirTask(TypedDict):
    """A retrieval task.

    `corpus` and `queries` map ids to texts, `relevant_docs` query ids to the positive grades of documents.
    `own` are the ids of queries that are documents: the document of that id has the same text.
    """

    corpus: dict[str, str]
    queries: dict[str, str]
    relevant_docs: dict[str, dict[str, int]]
    own: set[str]


def read_beir(task: str) -> BeirTask:
    """Read one BEIR directory: `qrels/test.tsv` if it exists, otherwise all `.tsv` files in `qrels`.

    Raises:
        NotFoundError: if a file is missing.
        InputError: if a line is not in BEIR format, or a judgement names an unknown query or document.
    """
    documents = _read_rows(storage.join(task, "corpus.jsonl"))
    corpus = {name: f"{row.get('title') or ''} {row['text']}".strip() for name, row in documents.items()}
    queries = {name: row["text"] for name, row in _read_rows(storage.join(task, "queries.jsonl")).items()}
    relevant: dict[str, dict[str, int]] = {}
    for (query, document), grade in _read_qrels(task).items():
        if grade > 0:
            relevant.setdefault(query, {})[document] = grade
    judged = dict.fromkeys(name for grades in relevant.values() for name in grades)
    for kind, named, known in (("queries", relevant, queries), ("corpus", judged, corpus)):
        missing = [name for name in named if name not in known]
        if missing:
            raise InputError(
                f"{task}: qrels name {len(missing)} of {len(named)} ids, such as {missing[0]!r}, that are "
                f"not in {kind}.jsonl. Remove these judgements, or add the texts"
            )
    if not relevant:
        raise InputError(f"{task}: qrels have no judgement with a positive grade")
    own = {name for name, text in queries.items() if name in documents and documents[name]["text"] == text}
    return BeirTask(corpus=corpus, queries=queries, relevant_docs=relevant, own=own)


def _read_rows(uri: str) -> dict[str, dict[str, Any]]:
    """The rows of a file of documents or queries by id; each has a text."""
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(storage.read_bytes(uri).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise InputError(f"{uri}:{number}: not in BEIR format: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{uri}:{number}: not in BEIR format: got {str(row)[:200]}; expected an object")
        name, title, text = (row.get(key) for key in ("_id", "title", "text"))
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise InputError(f"{uri}:{number}: _id: got {name!r}; expected a text or an integer")
        if not isinstance(text, str) or not isinstance(title, str | None):
            raise InputError(f"{uri}:{number}: text: got {text!r}, title: got {title!r}; expected texts")
        if str(name) in rows:
            raise InputError(f"{uri}:{number}: _id {name!r} occurs twice")
        rows[str(name)] = row
    return rows


def _read_qrels(task: str) -> dict[tuple[str, str], int]:
    """The grade of each judged pair of query id and document id."""
    folder = storage.join(task, "qrels")
    names = [name for name in storage.list_names(folder) if name.endswith(".tsv")]
    if not names:
        raise NotFoundError(f"{folder}: no .tsv file with relevance judgements")
    grades: dict[tuple[str, str], int] = {}
    for uri in (storage.join(folder, name) for name in (["test.tsv"] if "test.tsv" in names else names)):
        try:
            lines = storage.read_bytes(uri).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{uri}: not in BEIR format: {error}") from error
        for number, line in enumerate(lines, start=1):
            columns = line.split("\t")
            if len(columns) == 4:  # trec_eval's format has an unused second column
                del columns[1]
            if not line.strip() or (number == 1 and len(columns) == 3 and not _is_number(columns[2])):
                continue  # empty, or a header
            if len(columns) != 3 or not (_is_number(columns[2]) and float(columns[2]).is_integer()):
                raise InputError(
                    f"{uri}:{number}: not in BEIR format: got {line[:200]!r}; expected query-id, corpus-id "
                    "and an integer, separated by tabs"
                )
            pair, grade = (columns[0], columns[1]), int(float(columns[2]))
            if grades.setdefault(pair, grade) != grade:
                raise InputError(f"{uri}:{number}: grade {grade}; the same pair has {grades[pair]} before")
    return grades


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

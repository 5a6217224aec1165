"""Tasks in BEIR format: `corpus.jsonl`, `queries.jsonl`, `qrels/*.tsv`."""

import json
from typing import Any, TypedDict

from boom_ray import storage
from boom_ray.errors import InputError
from boom_ray.evaluation.qrels import read_qrels


class BeirTask(TypedDict):
    """A retrieval task.

    `corpus` maps ids to texts, and `queries` those that have a positive document. `relevant_docs` maps ids of
    queries to the positive grades of documents. `own` are the ids of queries that are documents: the document
    of that id has the same text, and is not judged relevant. `counts` are the numbers of `queries`,
    `documents` and `judgements`: the judged pairs of these queries, also those with the grade 0.
    """

    corpus: dict[str, str]
    queries: dict[str, str]
    relevant_docs: dict[str, dict[str, int]]
    own: set[str]
    counts: dict[str, int]


def read_beir(task: str) -> BeirTask:
    """Read one BEIR directory; see `qrels.read_qrels` for the judgements.

    Raises:
        NotFoundError: if a file is missing.
        InputError: if a line is not in BEIR format, or a judgement names an unknown query or document.
    """
    documents = read_rows(storage.join(task, "corpus.jsonl"))
    corpus = {name: f"{row.get('title') or ''} {row['text']}".strip() for name, row in documents.items()}
    queries = {name: row["text"] for name, row in read_rows(storage.join(task, "queries.jsonl")).items()}
    grades = read_qrels(storage.join(task, "qrels"))
    relevant: dict[str, dict[str, int]] = {}
    for (query, document), grade in grades.items():
        if grade > 0:
            relevant.setdefault(query, {})[document] = grade
    _check(task, relevant, corpus, queries)
    own = {
        name
        for name in relevant
        if name in documents and name not in relevant[name] and _is_text(queries[name], documents[name])
    }
    judged = sum(query in relevant for query, _ in grades)
    return BeirTask(
        corpus=corpus,
        queries={name: text for name, text in queries.items() if name in relevant},
        relevant_docs=relevant,
        own=own,
        counts={"queries": len(relevant), "documents": len(corpus), "judgements": judged},
    )


def read_queries(task: str) -> dict[str, str]:
    """The texts of the queries with a positive document by id, without reading the documents.

    Raises:
        NotFoundError, InputError: as `read_beir` does.
    """
    rows = read_rows(storage.join(task, "queries.jsonl"))
    grades = read_qrels(storage.join(task, "qrels"))
    relevant = {query for (query, _), grade in grades.items() if grade > 0}
    return {name: row["text"] for name, row in rows.items() if name in relevant}


def _check(
    task: str, relevant: dict[str, dict[str, int]], corpus: dict[str, str], queries: dict[str, str]
) -> None:
    """Refuse judgements of unknown texts: each would change the scores silently."""
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


def _is_text(query: str, document: dict[str, Any]) -> bool:
    """Whether a document is the query, with or without its title."""
    text = document["text"].split()
    return query.split() in (text, (document.get("title") or "").split() + text)


def read_rows(uri: str) -> dict[str, dict[str, Any]]:
    """The rows of a file of documents or queries by id; each has a `text`.

    Raises:
        InputError: naming the line that is not in BEIR format.
    """
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(storage.read_bytes(uri).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            name, row = _row(line)
        except InputError as error:
            raise InputError(f"{uri}:{number}: {error}") from error
        if name in rows:
            raise InputError(f"{uri}:{number}: _id {name!r} occurs twice")
        rows[name] = row
    return rows


def _row(line: bytes) -> tuple[str, dict[str, Any]]:
    """The id and the row in a line of JSON."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not in BEIR format: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"not in BEIR format: got {str(row)[:200]}; expected an object")
    name, title, text = (row.get(key) for key in ("_id", "title", "text"))
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise InputError(f"_id: got {name!r}; expected a text or an integer")
    if not isinstance(text, str) or not isinstance(title, str | None):
        raise InputError(f"text: got {text!r}, title: got {title!r}; expected texts")
    try:
        f"{name}{title}{text}".encode()
    except UnicodeEncodeError as error:
        raise InputError("half of a surrogate pair, which is not valid Unicode") from error
    return str(name), row

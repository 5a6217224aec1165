"""Tasks in BEIR format: `corpus.jsonl`, `queries.jsonl`, `qrels/*.tsv`."""

import json
from typing import Any, TypedDict

from boom_ray import storage
from boom_ray.errors import InputError, NotFoundError


class BeirTask(TypedDict):
    """A retrieval task.

    `corpus` and `queries` map ids to texts, `relevant_docs` query ids to the positive grades of documents.
    """

    corpus: dict[str, str]
    queries: dict[str, str]
    relevant_docs: dict[str, dict[str, int]]


def read_beir(task: str) -> BeirTask:
    """Read one BEIR directory: `qrels/test.tsv` if it exists, otherwise all `.tsv` files in `qrels`.

    Raises:
        NotFoundError: if a file is missing.
        InputError: if a line is not in BEIR format, or a judgement names an unknown query or document.
    """
    corpus = _read_texts(storage.join(task, "corpus.jsonl"))
    queries = _read_texts(storage.join(task, "queries.jsonl"))
    relevant: dict[str, dict[str, int]] = {}
    for query, document, grade in _read_qrels(task):
        if grade > 0:
            relevant.setdefault(query, {})[document] = grade
    documents = dict.fromkeys(name for grades in relevant.values() for name in grades)
    for kind, named, known in (("query", relevant, queries), ("document", documents, corpus)):
        missing = [name for name in named if name not in known]
        if missing:
            raise InputError(
                f"{task}: qrels judge {len(missing)} of {len(named)} with an unknown {kind} id, such as "
                f"{missing[0]!r}; expected an _id of {'queries' if kind == 'query' else 'corpus'}.jsonl. "
                "Remove these judgements, or add the texts"
            )
    if not relevant:
        raise InputError(f"{task}: qrels have no judgement with a positive grade")
    return BeirTask(corpus=corpus, queries=queries, relevant_docs=relevant)


def _read_texts(uri: str) -> dict[str, str]:
    """Texts by id; the title of a document precedes its text."""
    texts = {}
    for number, line in enumerate(storage.read_bytes(uri).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise InputError(f"{uri}:{number}: not in BEIR format: {error}") from error
        identifier, title, text = (
            row.get(key) if isinstance(row, dict) else None for key in ("_id", "title", "text")
        )
        if not isinstance(identifier, str | int) or isinstance(identifier, bool):
            raise InputError(f"{uri}:{number}: _id: got {identifier!r}; expected a text or an integer")
        if not isinstance(text, str) or not isinstance(title, str | None):
            raise InputError(f"{uri}:{number}: text: got {text!r}, title: got {title!r}; expected texts")
        if str(identifier) in texts:
            raise InputError(f"{uri}:{number}: _id {identifier!r} occurs twice")
        texts[str(identifier)] = f"{title or ''} {text}".strip()
    return texts


def _read_qrels(task: str) -> list[tuple[str, str, int]]:
    """Query id, document id and grade of each judgement."""
    folder = storage.join(task, "qrels")
    names = [name for name in storage.list_names(folder) if name.endswith(".tsv")]
    if not names:
        raise NotFoundError(f"{folder}: no .tsv file with relevance judgements")
    judgements = []
    for uri in (storage.join(folder, name) for name in (["test.tsv"] if "test.tsv" in names else names)):
        for number, line in enumerate(storage.read_bytes(uri).decode("utf-8-sig").splitlines(), start=1):
            if not line.strip():
                continue
            columns = line.split("\t")
            if len(columns) == 4:  # trec_eval's format has an unused second column
                del columns[1]
            try:
                query, document, grade = columns
                judgements.append((query, document, int(float(grade))))
            except ValueError:
                if number == 1 and len(columns) == 3:
                    continue  # a header
                raise InputError(
                    f"{uri}:{number}: not in BEIR format: got {line[:200]!r}; expected query-id, corpus-id "
                    "and a number, separated by tabs"
                ) from None
    return judgements

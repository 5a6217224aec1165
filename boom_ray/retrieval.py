"""One BEIR directory, and the evaluator of sentence-transformers over our encoder."""

import json
from typing import Any

import torch
from sentence_transformers import util
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from boom_ray import storage
from boom_ray.errors import BoomError


class RetrievalEvaluator(InformationRetrievalEvaluator):
    """The evaluator of sentence-transformers over our encoder."""

    def __init__(self, task: str, max_length: int | None, chunk_tokens: int, **options: Any) -> None:
        super().__init__(
            **read_beir(task),
            score_functions={"cosine": util.cos_sim},
            mrr_at_k=[10],
            ndcg_at_k=[10],
            precision_recall_at_k=[100],
            **options,
        )
        self.max_length, self.chunk_tokens = max_length, chunk_tokens
        self.ndcg_of_queries: dict[str, float] = {}

    def embed_inputs(self, model: Any, sentences: Any, prompt: str | None = None, **_: Any) -> Any:  # type: ignore[override]
        """Embed texts; see the base class."""
        token_ids = model.tokenize([(prompt or "") + text for text in sentences], self.max_length)
        return torch.from_numpy(model.encode_tokens(token_ids, self.chunk_tokens))

    def compute_metrics(self, queries_result_list: Any) -> Any:
        """The means over all queries, see the base class; nDCG@10 of each query is kept beside them."""
        for query, hits in zip(self.queries_ids, queries_result_list, strict=True):
            first = sorted(hits, key=lambda hit: (-hit["score"], hit["corpus_id"]))[:10]
            gains = [float(hit["corpus_id"] in self.relevant_docs[query]) for hit in first]
            most = [1.0] * len(self.relevant_docs[query])
            ideal = self.compute_dcg_at_k(most, 10)
            self.ndcg_of_queries[query] = float(self.compute_dcg_at_k(gains, 10) / ideal)
        return super().compute_metrics(queries_result_list)


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

"""Retrieval on a BEIR directory: the evaluator of sentence-transformers with the encoder of boom-ray."""

from statistics import fmean
from typing import Any

import numpy as np
import torch
from sentence_transformers import util
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from boom_ray.errors import InputError
from boom_ray.evaluation.beir import read_beir

Hits = list[dict[str, Any]]  # {"corpus_id": position in `RetrievalEvaluator.documents`, "score": float}


class RetrievalEvaluator(InformationRetrievalEvaluator):
    """nDCG@10, MRR@10 and recall@100 by cosine similarity, with the nDCG@10 of each query.

    Scores are those of trec_eval: the gain of a document is its grade, and documents with equal scores rank
    by their ids, the last id first. A query that is itself a document does not find itself, as in BEIR.

    Args:
        task: URI of the BEIR directory.
        max_length: Tokens after which texts are truncated; None for the model's own limit.
        options: Of the base class.

    Attributes:
        documents: Their ids, the last first. The base class ranks equal scores by ascending ids of documents,
            so it receives the positions in this list as ids.
        counts: The numbers of queries, documents and judgements.
        ndcg_of_queries: nDCG@10 by id of query.
    """

    def __init__(self, task: str, max_length: int | None, **options: Any) -> None:
        data = read_beir(task)
        self.documents = sorted(data["corpus"], reverse=True)
        self.own, self.counts = data["own"], data["counts"]
        positions = {name: position for position, name in enumerate(self.documents)}
        self.grades = {
            query: {positions[name]: grade for name, grade in grades.items()}
            for query, grades in data["relevant_docs"].items()
        }
        queries: Any = data["queries"]
        corpus: Any = dict(enumerate(map(data["corpus"].__getitem__, self.documents)))
        relevant: Any = {query: set(grades) for query, grades in self.grades.items()}
        super().__init__(
            queries,
            corpus,
            relevant,
            score_functions={"cosine": util.cos_sim},
            mrr_at_k=[10],
            ndcg_at_k=[10],
            precision_recall_at_k=[100],
            map_at_k=[101],  # unused; one hit more is found, of which the query's own document is removed
            **options,
        )
        self.max_length = max_length
        self.ndcg_of_queries: dict[str, float] = {}

    def embed_inputs(self, model: Any, sentences: Any, prompt: str | None = None, **_: Any) -> Any:  # type: ignore[override]
        """[n, d] float32 embeddings; see the base class.

        Raises:
            InputError: if an embedding is not finite; its text would rank first for every query.
        """
        tokens = model.tokenize(sentences, self.max_length, prompt or "")
        vectors = model.encode_tokens(tokens)
        (bad,) = np.nonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            example = sentences[bad[0]][:80]
            raise InputError(f"{len(bad)} texts, such as {example!r}, have embeddings that are not finite")
        return torch.from_numpy(vectors)

    def compute_metrics(self, queries_result_list: Any) -> Any:
        """The means over all queries, see the base class; also stores nDCG@10 of each query.

        The base class has no grades, and returns means only.
        """
        found = [
            self._ranked(query, hits)
            for query, hits in zip(self.queries_ids, queries_result_list, strict=True)
        ]
        for query, hits in zip(self.queries_ids, found, strict=True):
            grades = self.grades[query]
            gain = self.compute_dcg_at_k([grades.get(hit["corpus_id"], 0) for hit in hits[:10]], 10)
            ideal = self.compute_dcg_at_k(sorted(grades.values(), reverse=True), 10)
            self.ndcg_of_queries[query] = float(gain / ideal)
        means: Any = super().compute_metrics(found)  # type: ignore[arg-type]
        return means | {"ndcg@k": {10: fmean(self.ndcg_of_queries.values())}}

    def _ranked(self, query: str, hits: Hits) -> Hits:
        """The hits without the query's own document, sorted by float32 scores as trec_eval does."""
        own = query if query in self.own else None
        kept = [
            {"corpus_id": hit["corpus_id"], "score": float(np.float32(hit["score"]))}
            for hit in hits
            if self.documents[hit["corpus_id"]] != own
        ]
        return sorted(kept, key=lambda hit: (-hit["score"], hit["corpus_id"]))

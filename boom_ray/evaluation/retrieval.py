"""Retrieval on a BEIR directory: the evaluator of sentence-transformers with the encoder of boom-ray."""

from statistics import fmean
from typing import Any

import torch
from sentence_transformers import util
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from boom_ray.evaluation.beir import read_beir


class RetrievalEvaluator(InformationRetrievalEvaluator):
    """nDCG@10, MRR@10 and recall@100 by cosine similarity, with the nDCG@10 of each query.

    The gain of a document is its grade, as in trec_eval. A query that is itself a document, with the same id
    and text, does not find itself, as in BEIR.

    Args:
        task: URI of the BEIR directory.
        max_length: Tokens after which texts are truncated; None for the model's own limit.
        chunk_tokens: Padded tokens in one forward pass.
        options: Of the base class.
    """

    def __init__(self, task: str, max_length: int | None, chunk_tokens: int, **options: Any) -> None:
        data: Any = read_beir(task)
        self.grades: dict[str, dict[str, int]] = data["relevant_docs"]
        self.own: set[str] = data["own"]
        super().__init__(
            data["queries"],
            data["corpus"],
            {query: set(grades) for query, grades in self.grades.items()},
            score_functions={"cosine": util.cos_sim},
            mrr_at_k=[10],
            ndcg_at_k=[10],
            precision_recall_at_k=[100],
            map_at_k=[101],  # unused; one hit more is found, of which the query's own document is removed
            **options,
        )
        self.max_length, self.chunk_tokens = max_length, chunk_tokens
        self.ndcg_of_queries: dict[str, float] = {}

    def embed_inputs(self, model: Any, sentences: Any, prompt: str | None = None, **_: Any) -> Any:  # type: ignore[override]
        """[n, d] float32 embeddings; see the base class."""
        token_ids = model.tokenize([(prompt or "") + text for text in sentences], self.max_length)
        return torch.from_numpy(model.encode_tokens(token_ids, self.chunk_tokens))

    def compute_metrics(self, queries_result_list: Any) -> Any:
        """The means over all queries, see the base class; also stores nDCG@10 of each query.

        The base class has no grades, and returns means only. Hits are sorted as it sorts them, with equal
        scores in the order of the ids.
        """
        found: list[Any] = [
            [hit for hit in hits if hit["corpus_id"] != query or query not in self.own]
            for query, hits in zip(self.queries_ids, queries_result_list, strict=True)
        ]
        for query, hits in zip(self.queries_ids, found, strict=True):
            grades = self.grades[query]
            first = sorted(hits, key=lambda hit: (-hit["score"], hit["corpus_id"]))[:10]
            gain = self.compute_dcg_at_k([grades.get(hit["corpus_id"], 0) for hit in first], 10)
            ideal = self.compute_dcg_at_k(sorted(grades.values(), reverse=True), 10)
            self.ndcg_of_queries[query] = float(gain / ideal)
        means: Any = super().compute_metrics(found)
        return means | {"ndcg@k": {10: fmean(self.ndcg_of_queries.values())}}

"""Retrieval on a BEIR directory: the evaluator of sentence-transformers over our encoder."""

from typing import Any

import torch
from sentence_transformers import util
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from boom_ray.evaluation.beir import read_beir


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

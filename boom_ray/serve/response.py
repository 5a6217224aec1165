"""The body of a successful response to `/v1/embeddings`."""

import base64
from typing import Any

import numpy as np

from boom_ray.serve.schema import EmbeddingRequest


def shorten(vectors: np.ndarray, dimensions: int | None) -> np.ndarray:
    """The first `dimensions` of [n, d] vectors, normalized again; None: unchanged."""
    if dimensions is None:
        return vectors
    leading = vectors[:, :dimensions]
    return leading / np.maximum(np.linalg.norm(leading, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def response_body(
    vectors: np.ndarray, token_ids: list[list[int]], request: EmbeddingRequest, model: str
) -> dict[str, Any]:
    """An `EmbeddingResponse` as a dict, whose arrays the JSON encoder writes.

    A pydantic model would convert and validate every number, which takes longer than a small model computes.
    """
    encoded: list[Any] = list(vectors)
    if request.encoding_format == "base64":
        encoded = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    tokens = sum(map(len, token_ids))
    body = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(encoded)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    prompt = request.prompt_name or request.input_type
    return body | ({"prompt_name": prompt} if prompt else {})

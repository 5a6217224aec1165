"""From pooled vectors to the body of a successful response."""

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from fastapi import Request, Response

from boom_ray.model.tokens import Tokens
from boom_ray.serve.schema import EmbeddingRequest

if TYPE_CHECKING:
    from boom_ray.serve.ingress import ActiveModel, Ingress


def json_response(content: Any) -> Response:
    """A response without FastAPI's encoder, which walks over every number."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


async def embed(
    ingress: "Ingress", body: EmbeddingRequest, request: Request
) -> "tuple[ActiveModel, Tokens, np.ndarray]":
    """Model, tokens and [n, d] vectors for a request, whose version and tokens the guard then logs."""
    model, tokens, pooled = await ingress.embed(body)
    request.scope["model_version"] = model.served.version
    request.scope["num_tokens"] = len(tokens.ids)
    return model, tokens, finish(pooled, body)


def finish(pooled: np.ndarray, request: EmbeddingRequest) -> np.ndarray:
    """The requested leading dimensions of [n, d] pooled vectors, with norm 1 unless the request says no."""
    leading = pooled[:, : request.dimensions]
    if not request.normalize:
        return np.ascontiguousarray(leading)  # as the JSON encoder needs it
    return leading / np.maximum(np.linalg.norm(leading, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def response_body(
    vectors: np.ndarray, num_tokens: int, request: EmbeddingRequest, model: str
) -> dict[str, Any]:
    """An `EmbeddingResponse` as a dict, whose arrays the JSON encoder writes.

    A pydantic model would convert and validate every number, which takes longer than a small model computes.
    """
    encoded: list[Any] = list(vectors)
    if request.encoding_format == "base64":
        encoded = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    body = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(encoded)
        ],
        "model": model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
    prompt = request.prompt_name or request.input_type
    return body | ({"prompt_name": prompt} if prompt else {})

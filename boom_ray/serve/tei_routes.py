"""The routes of text-embeddings-inference (TEI) that a server of dense embeddings has."""

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response

from boom_ray import __version__
from boom_ray.serve.error_responses import ERRORS
from boom_ray.serve.limits import MAX_INPUTS
from boom_ray.serve.response import embed, json_response
from boom_ray.serve.schema import RequestError
from boom_ray.serve.tei_schema import (
    DecodeRequest,
    EmbedRequest,
    ServerInfo,
    SimilarityRequest,
    TokenizeRequest,
    TokenSpan,
)

if TYPE_CHECKING:
    from boom_ray.serve.ingress import Ingress

OTHER_MODELS = {
    "/embed_all": "vectors of single tokens",
    "/embed_sparse": "sparse vectors",
    "/predict": "classes",
    "/rerank": "scores of a cross-encoder",
}


def add_tei(app: FastAPI, ingress: "Ingress") -> None:
    """Add all of them to the app of an ingress."""
    _add_vectors(app, ingress)
    _add_tokens(app, ingress)
    _add_info(app, ingress)
    for path, what in OTHER_MODELS.items():
        _refuse(app, path, what)


def _add_vectors(app: FastAPI, ingress: "Ingress") -> None:
    vectors_of_texts = {**ERRORS, 200: {"model": list[list[float]]}}

    @app.post("/", responses=vectors_of_texts, response_class=Response)
    @app.post("/embed", responses=vectors_of_texts, response_class=Response)
    async def embed_texts(body: EmbedRequest, request: Request) -> Response:
        _, _, vectors = await embed(ingress, body.as_openai(), request)
        return json_response(list(vectors))

    @app.post("/similarity", responses=ERRORS)
    async def similarity(body: SimilarityRequest, request: Request) -> list[float]:
        """Cosines of a text to others."""
        _, _, vectors = await embed(ingress, body.as_openai(), request)
        cosines: list[float] = (vectors[1:] @ vectors[0]).tolist()
        return cosines


def _add_tokens(app: FastAPI, ingress: "Ingress") -> None:
    @app.post("/tokenize", responses=ERRORS)
    async def tokenize(body: TokenizeRequest) -> list[list[TokenSpan]]:
        model, loop = ingress.model(None), asyncio.get_running_loop()
        return await loop.run_in_executor(ingress.tokenizing, partial(model.reader.tokens, body))

    @app.post("/decode", responses=ERRORS)
    async def decode(body: DecodeRequest) -> list[str]:
        model, loop = ingress.model(None), asyncio.get_running_loop()
        return await loop.run_in_executor(ingress.tokenizing, partial(model.reader.texts, body))


def _add_info(app: FastAPI, ingress: "Ingress") -> None:
    @app.get("/info", responses=ERRORS)
    async def info() -> ServerInfo:
        model, limits = ingress.model(None), ingress.limits
        pooling = model.reader.spec.pooling.replace("lasttoken", "last_token")
        return ServerInfo(
            model_id=model.served.name,
            model_sha=model.served.digest,
            model_dtype="float32",
            served_model_name=model.served.name,
            model_type={"embedding": {"pooling": pooling}},
            max_input_length=model.served.max_length,
            max_batch_tokens=limits.pass_tokens,
            max_client_batch_size=MAX_INPUTS,
            max_concurrent_requests=limits.ongoing_requests,
            tokenization_workers=1,
            version=__version__,
        )


def _refuse(app: FastAPI, path: str, what: str) -> None:
    """Answer a route that needs a model of another kind with TEI's status for it."""

    @app.post(path, include_in_schema=False)
    async def refuse() -> Response:
        message = f"{path} returns {what}; these models return dense embeddings. Use /embed or /similarity"
        raise RequestError(424, message, code="unsupported_model")

"""The routes: OpenAI's embeddings API, text-embeddings-inference's, and health checks.

To add a route, write a function like `_add_health` and call it in `build_app`. Raise `RequestError` for every
refusal: the app turns it into OpenAI's shape.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from boom_ray import __version__
from boom_ray.serve.guard import Guard
from boom_ray.serve.limits import MAX_INPUTS
from boom_ray.serve.response import response_body, shorten
from boom_ray.serve.schema import (
    EmbeddingRequest,
    EmbeddingResponse,
    EmbedRequest,
    ErrorResponse,
    ListedModel,
    ModelList,
    RequestError,
    ServerInfo,
    TokenizeRequest,
    TokenSpan,
)

if TYPE_CHECKING:
    from boom_ray.serve.ingress import ActiveModel, Ingress

INPUT_KINDS = "a text, a list of texts, a list of token ids, or a list of lists of token ids"
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 404, 413, 422, 429, 500, 503)
}


def build_app(ingress: "Ingress") -> FastAPI:
    """The app of one replica. Every response names the model's version; errors have OpenAI's shape."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await ingress.stop_listening()

    app = FastAPI(
        title="boom-ray",
        version=__version__,
        description="Text embeddings",
        redoc_url=None,
        lifespan=lifespan,
    )
    _add_openai(app, ingress)
    _add_tei(app, ingress)
    _add_health(app, ingress)
    add_error_handlers(app)
    # Callables, not values: models and limits change while the app stays.
    app.add_middleware(
        Guard,
        key_digests=ingress.endpoint.key_digests,
        limits=lambda: ingress.limits,
        refuse=error_response,
        version=lambda: ingress.model(None).served.version if ingress.models else "none",
        on_answer=ingress.metrics.answered,
    )
    return app


def _json(content: Any) -> Response:
    """A response without FastAPI's encoder, which walks over every number."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


async def _embed(
    ingress: "Ingress", body: EmbeddingRequest, request: Request
) -> "tuple[ActiveModel, list[list[int]], np.ndarray]":
    """Vectors for a request, whose version and tokens the guard then logs."""
    model, token_ids, vectors = await ingress.embed(body)
    request.scope["model_version"] = model.served.version
    request.scope["num_tokens"] = sum(map(len, token_ids))
    return model, token_ids, shorten(vectors, body.dimensions)


def _add_openai(app: FastAPI, ingress: "Ingress") -> None:
    @app.post(
        "/v1/embeddings", responses={**ERRORS, 200: {"model": EmbeddingResponse}}, response_class=Response
    )
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        model, token_ids, vectors = await _embed(ingress, body, request)
        return _json(response_body(vectors, token_ids, body, model.served.name))

    @app.get("/v1/models", responses=ERRORS)
    async def models() -> ModelList:
        active = ingress.models.items()
        return ModelList(data=[ListedModel(id=name, created=model.since) for name, model in active])


def _add_tei(app: FastAPI, ingress: "Ingress") -> None:
    @app.post("/embed", responses={**ERRORS, 200: {"model": list[list[float]]}}, response_class=Response)
    async def embed(body: EmbedRequest, request: Request) -> Response:
        _, _, vectors = await _embed(ingress, body.as_openai(), request)
        return _json(list(vectors))

    @app.post("/tokenize", responses=ERRORS)
    async def tokenize(body: TokenizeRequest) -> list[list[TokenSpan]]:
        model, loop = ingress.model(None), asyncio.get_running_loop()
        return await loop.run_in_executor(ingress.tokenizing, partial(model.reader.tokens, body))

    @app.get("/info", responses=ERRORS)
    async def info() -> ServerInfo:
        served, limits = ingress.model(None).served, ingress.limits
        return ServerInfo(
            model_id=served.name,
            model_sha=served.digest,
            model_dtype="float32",
            model_type={"embedding": {"pooling": ingress.model(None).reader.spec.pooling}},
            max_input_length=served.max_length,
            max_batch_tokens=limits.pass_tokens,
            max_client_batch_size=MAX_INPUTS,
            max_concurrent_requests=limits.ongoing_requests,
            tokenization_workers=1,
            version=__version__,
        )


def _add_health(app: FastAPI, ingress: "Ingress") -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether this process answers."""
        served = ingress.model(None).served
        return {"status": "ok", "model": served.name, "version": served.version}

    @app.get("/ready", responses=ERRORS)
    async def ready() -> dict[str, str]:
        """Whether the encoders answer as well."""
        await ingress.embed(EmbeddingRequest(input="ready?"))
        return {"status": "ready"}


# ── Errors ─────────────────────────────────────────────────────────────────────────────────────────


def error_response(error: RequestError) -> JSONResponse:
    """The response to an error, in OpenAI's shape."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
    return JSONResponse(error.body.model_dump(), error.status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Give all errors that the routes of an app raise OpenAI's shape."""

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(explain(error))

    @app.exception_handler(HTTPException)
    async def unroutable(_: Request, error: HTTPException) -> JSONResponse:
        code = {413: "body_too_large", 429: "overloaded"}.get(error.status_code)
        retry_after = 1 if error.status_code == 429 else None
        return error_response(
            RequestError(error.status_code, str(error.detail), code=code, retry_after=retry_after)
        )


def explain(error: RequestValidationError) -> RequestError:
    """The first problem of a body, in one sentence that does not repeat the input."""
    first = error.errors()[0]
    key = str(first["loc"][1]) if len(first["loc"]) > 1 else None
    if first["type"] == "json_invalid":
        return RequestError(400, "the body is not valid JSON", code="invalid_json")
    if key in ("input", "inputs"):
        return RequestError(422, f"{key} must be {INPUT_KINDS}", key, first["type"])
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(EmbeddingRequest.model_fields)
        return RequestError(422, f"unknown key {key!r}; allowed: {allowed}", key, first["type"])
    return RequestError(422, f"{key or 'the body'}: {first['msg']}", key, first["type"])

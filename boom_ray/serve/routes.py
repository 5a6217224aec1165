"""The app: OpenAI's embeddings API, text-embeddings-inference's (`tei_routes.py`), and health checks.

To add a route, write a function like `_add_health` and call it in `build_app`. Raise `RequestError` for every
refusal: the app turns it into OpenAI's shape.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response

from boom_ray import __version__
from boom_ray.serve.error_responses import ERRORS, add_error_handlers, error_response
from boom_ray.serve.guard import Guard
from boom_ray.serve.response import embed, json_response, response_body
from boom_ray.serve.schema import EmbeddingRequest, EmbeddingResponse, ListedModel, ModelList
from boom_ray.serve.tei_routes import add_tei

if TYPE_CHECKING:
    from boom_ray.serve.ingress import Ingress

PREFIXES = ("/v1", "")  # some clients take the URL without the version


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
    for prefix in PREFIXES:
        _add_openai(app, ingress, prefix)
    add_tei(app, ingress)
    _add_health(app, ingress)
    add_error_handlers(app)
    # Callables, not values: models and limits change while the app stays.
    app.add_middleware(
        Guard,
        key_digests=lambda: ingress.key_digests,
        limits=lambda: ingress.limits,
        refuse=error_response,
        version=lambda: ingress.model(None).served.version if ingress.models else "none",
        on_answer=ingress.metrics.answered,
    )
    return app


def _add_openai(app: FastAPI, ingress: "Ingress", prefix: str) -> None:
    @app.post(
        f"{prefix}/embeddings",
        responses={**ERRORS, 200: {"model": EmbeddingResponse}},
        response_class=Response,
    )
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        model, tokens, vectors = await embed(ingress, body, request)
        return json_response(response_body(vectors, len(tokens.ids), body, model.served.name))

    @app.get(f"{prefix}/models", responses=ERRORS)
    async def models() -> ModelList:
        active = ingress.models.items()
        return ModelList(data=[ListedModel(id=name, created=model.since) for name, model in active])

    @app.get(f"{prefix}/models/{{model:path}}", responses=ERRORS)
    async def one_model(model: str) -> ListedModel:
        """A served model by its name, version or both: all that `model` of a request can be."""
        found = ingress.model(model)
        return ListedModel(id=found.served.name, created=found.since)


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

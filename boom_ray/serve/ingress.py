"""The deployment that clients speak to: it checks, tokenizes, and sends token ids to the encoders."""

import asyncio
import itertools
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from boom_ray import __version__
from boom_ray.artifacts.record import fingerprint
from boom_ray.serve.batcher import TokenBatcher, TokenIds
from boom_ray.serve.encoder import DEPLOYMENT, Served
from boom_ray.serve.limits import Limits
from boom_ray.serve.listener import Listener
from boom_ray.serve.metrics import RequestMetrics
from boom_ray.serve.request import Reader
from boom_ray.serve.schema import EmbeddingRequest, RequestError

ATTEMPTS = 5  # encoders that may be lost under one request
PAUSE_SECONDS = 0.2  # before the next, doubled each time


@dataclass(frozen=True)
class Place:
    """How an endpoint is reached.

    Attributes:
        host: Address to listen at.
        port: TCP port; none where Ray Serve's proxies listen.
        key_digests: SHA-256 of the keys that clients may send; none lets everyone in.
    """

    host: str
    port: int | None
    key_digests: tuple[bytes, ...]


@dataclass(frozen=True)
class Model:
    """A served version as the ingress knows it; what waits for `encoder` goes to a replica in one call."""

    served: Served
    reader: Reader
    encoder: TokenBatcher
    since: int


@serve.deployment(name="ingress", max_constructor_retry_count=1)
@serve.ingress()
class Ingress:
    """One replica.

    Args:
        place: How it is reached.
    """

    def __init__(self, place: Place) -> None:
        self.place, self.key_digests = place, place.key_digests
        self.limits = Limits(1, 1)
        self.listener: Listener | None = None
        self.models: dict[str, Model] = {}
        self.metrics = RequestMetrics()
        self.tokenizing = ThreadPoolExecutor(1)
        self.accepted_tokens = 0
        self.tokens_per_second = 0.0

    def __serve_build_asgi_app__(self) -> FastAPI:
        from boom_ray.serve.routes import build_app

        self.routes = build_app(self)
        return self.routes

    async def where(self) -> Place:
        """How it is reached."""
        return self.place

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve these versions from the next request on; those under way end with their own."""
        loop, models = asyncio.get_running_loop(), {}
        limits = Limits(**config["limits"])
        for values in config["models"]:
            served = Served(**values)
            known = self.models.get(served.name)
            if known is not None and known.served == served and limits == self.limits:
                models[served.name] = known
                continue
            reader = await loop.run_in_executor(self.tokenizing, Reader.load, served.uri)
            handle = serve.get_deployment_handle(DEPLOYMENT, served.application)
            encoder = TokenBatcher(
                partial(call, handle),
                limits.pass_tokens,
                limits.ongoing_calls,
                self.metrics.queue(served.version),
            )
            models[served.name] = Model(served, reader, encoder, int(time.time()))
        self.models, self.limits = models, limits
        if self.place.port and self.listener is None:
            self.listener = Listener(self.routes)
            await self.listener.start(self.place.host, self.place.port)

    async def check_health(self) -> None:
        """Raise RuntimeError, upon which Ray Serve replaces the replica, if it no longer listens."""
        if self.listener is not None:
            self.listener.check()

    async def stop_listening(self) -> None:
        """Answer what was accepted, and nothing more."""
        if self.listener is not None:
            await self.listener.stop()

    def model(self, name: str | None) -> Model:
        """The model a request asks for; the first without a name.

        Raises:
            RequestError: if none of that name is served.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            message = f"no model {name!r} is served here; served: {', '.join(map(repr, self.models))}"
            raise RequestError(404, message, "model", "model_not_found")
        return self.models[name]

    async def embed(self, request: EmbeddingRequest) -> tuple[Model, list[list[int]], np.ndarray]:
        """The model that answers, the token ids of every input, and [n, d] vectors.

        Raises:
            RequestError: if the request asks for what the model cannot give, or there is too much to do.
        """
        model = self.model(request.model)
        self._admit(1)
        loop = asyncio.get_running_loop()
        token_ids = await loop.run_in_executor(self.tokenizing, model.reader.read, request)
        tokens = sum(map(len, token_ids))
        self._admit(tokens)
        self.accepted_tokens += tokens
        self.metrics.load.set(self.accepted_tokens)
        since = loop.time()
        try:
            model, vectors = await self._encode(model, token_ids)
        finally:
            self.accepted_tokens -= tokens
            self.metrics.load.set(self.accepted_tokens)
        pace = (tokens + self.accepted_tokens) / (loop.time() - since)
        self.tokens_per_second += 0.1 * (pace - self.tokens_per_second)
        self.metrics.tokens.inc(tokens, {"version": model.served.version})
        return model, token_ids, vectors

    def _admit(self, tokens: int) -> None:
        """Refuse what would wait too long; an idle endpoint refuses no request, whatever its size."""
        if self.accepted_tokens == 0 or self.accepted_tokens + tokens <= self.limits.waiting_tokens:
            return
        seconds = math.ceil(self.accepted_tokens / max(self.tokens_per_second, 1000))
        message = f"{self.accepted_tokens} tokens are waiting already; come back in {seconds} s"
        raise RequestError(429, message, code="overloaded", retry_after=seconds)

    async def _encode(self, model: Model, token_ids: list[list[int]]) -> tuple[Model, np.ndarray]:
        """By any encoder of the model: what one that was lost had accepted goes to another."""
        for attempt in itertools.count(1):
            try:
                return model, await model.encoder(token_ids)
            except (RayActorError, RayServeException) as error:
                if attempt == ATTEMPTS:
                    message = "the encoders of this model are gone; its operators must look"
                    raise RequestError(503, message, code="no_encoder", retry_after=10) from error
            self.metrics.retries.inc()
            await asyncio.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
            model = self.models.get(model.served.name, model)
        raise AssertionError


async def call(encoder: DeploymentHandle, token_ids: TokenIds) -> np.ndarray:
    """[n, d] vectors by any replica; if they are wanted no more, it is told."""
    response = encoder.encode.remote(token_ids)
    try:
        vectors: np.ndarray = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    return vectors


def ingress_application(models: list[Served], limits: Limits, place: Place) -> Any:
    """The application in front of encoders; deployed again at its place, it only learns new versions."""
    # Without a version of its own, Ray Serve replaces the replicas of what is deployed again, and one that
    # listens itself would refuse connections meanwhile.
    made_of = [__version__, place.host, place.port, [digest.hex() for digest in place.key_digests]]
    deployment: Any = Ingress.options(  # type: ignore[attr-defined]
        version=fingerprint(made_of),
        _internal=True,
        max_ongoing_requests=limits.ongoing_requests,
        ray_actor_options={"num_cpus": 0.1},
        user_config={"models": [asdict(served) for served in models], "limits": asdict(limits)},
    )
    return deployment.bind(place)

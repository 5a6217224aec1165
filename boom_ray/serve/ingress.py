"""The deployment that speaks HTTP: it checks and tokenizes requests, and sends token ids to the encoders."""

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
from boom_ray.model.tokens import Tokens
from boom_ray.serve.batcher import TokenBatcher
from boom_ray.serve.limits import Limits
from boom_ray.serve.listener import Listener
from boom_ray.serve.metrics import RequestMetrics
from boom_ray.serve.ray_internals import with_version
from boom_ray.serve.replica import DEPLOYMENT
from boom_ray.serve.request_reader import RequestReader
from boom_ray.serve.schema import EmbeddingRequest, RequestError
from boom_ray.serve.served_model import ServedModel, find_model

ATTEMPTS = 5  # calls per request: each may hit a replica that fails
FIRST_PAUSE_SECONDS = 0.2  # between attempts, doubled each time: Ray Serve needs seconds to replace a replica
NUM_CPUS = 0.1  # reserved by the replica
MIN_TOKENS_PER_SECOND = 1000  # assumed of an endpoint that has measured no pace yet


@dataclass(frozen=True)
class Endpoint:
    """The address of an endpoint.

    Attributes:
        host: Address to listen at.
        port: TCP port; None if Ray Serve's proxies listen instead.
    """

    host: str
    port: int | None


@dataclass(frozen=True)
class ActiveModel:
    """A served model with the ingress's means to answer for it.

    Attributes:
        served: Its identity.
        reader: Turns requests into token ids.
        encoder: Queue of token ids; several requests share a call of a replica.
        since: Start of serving, seconds since 1970.
    """

    served: ServedModel
    reader: RequestReader
    encoder: TokenBatcher
    since: int


@serve.deployment(name="ingress", max_constructor_retry_count=1)
@serve.ingress()
class Ingress:
    """One replica. Its state is only touched on the event loop; tokenizing runs in one thread of its own."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        # Until Ray Serve calls `reconfigure`, before the first request:
        self.limits = Limits(1, 1)
        self.key_digests: tuple[bytes, ...] = (b"",)  # which is the digest of no key
        self.listener: Listener | None = None
        self.models: dict[str, ActiveModel] = {}
        self.metrics = RequestMetrics()
        self.tokenizing = ThreadPoolExecutor(1)
        self.accepted_tokens = 0
        self.tokens_per_second = 0.0

    def __serve_build_asgi_app__(self) -> FastAPI:
        from boom_ray.serve.routes import build_app

        self.routes = build_app(self)
        return self.routes

    async def get_endpoint(self) -> Endpoint:
        """The address, for a driver that changes the served versions."""
        return self.endpoint

    async def get_key_digests(self) -> tuple[bytes, ...]:
        """SHA-256 of the keys that clients may send, for the same driver; empty: no key is needed."""
        return self.key_digests

    async def get_names(self) -> list[str]:
        """The names of the served models, also for that driver."""
        return list(self.models)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve other versions from the next request on, to clients with other keys.

        Requests in progress keep their version. Everything that can fail or wait comes before the
        assignments, so that a request sees either the old models, limits and keys or the new.
        """
        loop, models = asyncio.get_running_loop(), {}
        limits = Limits(**config["limits"])
        for values in config["models"]:
            served = ServedModel(**values)
            active = self.models.get(served.name)
            if active is not None and active.served == served and limits == self.limits:
                models[served.name] = active
                continue
            reader = await loop.run_in_executor(self.tokenizing, RequestReader.load, served.uri)
            handle = serve.get_deployment_handle(DEPLOYMENT, served.application)
            encoder = TokenBatcher(
                partial(call, handle),
                limits.pass_tokens,
                limits.ongoing_calls,
                self.metrics.queue(served.version),
            )
            models[served.name] = ActiveModel(served, reader, encoder, int(time.time()))
        self.models, self.limits = models, limits
        self.key_digests = tuple(map(bytes.fromhex, config["key_digests"]))
        # The port opens after the first configuration: a connection is never refused for lack of a model.
        if self.endpoint.port and self.listener is None:
            self.listener = Listener(self.routes)
            await self.listener.start(self.endpoint.host, self.endpoint.port)

    async def check_health(self) -> None:
        """Raise RuntimeError if the listener has ended; Ray Serve then replaces the replica."""
        if self.listener is not None:
            self.listener.check()

    async def stop_listening(self) -> None:
        """Accept no more connections, and return when all accepted requests are answered."""
        if self.listener is not None:
            await self.listener.stop()

    def model(self, requested: str | None) -> ActiveModel:
        """The model that a request names (see `find_model`); the first if it names none.

        Raises:
            RequestError: if no served model has that name.
        """
        served = [active.served for active in self.models.values()]
        found = find_model(requested, served)
        if found is None:
            names = ", ".join(model.full_name for model in served)
            message = (
                f"no model {requested!r} is served; served: {names}. Send a name, name:version, or a version "
                "that only one of them has"
            )
            raise RequestError(404, message, "model", "model_not_found")
        return self.models[found.name]

    async def embed(self, request: EmbeddingRequest) -> tuple[ActiveModel, Tokens, np.ndarray]:
        """The model that answered, the tokens of every input, and [n, d] pooled vectors.

        Raises:
            RequestError: if the request does not fit the model, or the endpoint is overloaded.
        """
        model = self.model(request.model)
        self._admit(1)  # before tokenizing, which costs time even for a request that is then refused
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(self.tokenizing, model.reader.read, request)
        count = len(tokens.ids)
        self._admit(count)
        self.accepted_tokens += count
        self.metrics.load.set(self.accepted_tokens)
        since = loop.time()
        try:
            model, vectors = await self._encode(model, tokens)
        finally:
            self.accepted_tokens -= count
            self.metrics.load.set(self.accepted_tokens)
        # The pace is what `Retry-After` is estimated from: a moving average over the last ten or so requests.
        pace = (count + self.accepted_tokens) / (loop.time() - since)
        self.tokens_per_second += 0.1 * (pace - self.tokens_per_second)
        self.metrics.tokens.inc(count, {"version": model.served.version})
        return model, tokens, vectors

    def _admit(self, tokens: int) -> None:
        """Refuse a request that would wait too long; an idle endpoint accepts any size.

        Raises:
            RequestError: with status 429 and the seconds until the queue should be empty.
        """
        if self.accepted_tokens == 0 or self.accepted_tokens + tokens <= self.limits.waiting_tokens:
            return
        seconds = math.ceil(self.accepted_tokens / max(self.tokens_per_second, MIN_TOKENS_PER_SECOND))
        message = f"overloaded: {self.accepted_tokens} tokens are waiting; retry in {seconds} s"
        raise RequestError(429, message, code="overloaded", retry_after=seconds)

    async def _encode(self, model: ActiveModel, tokens: Tokens) -> tuple[ActiveModel, np.ndarray]:
        """Encode on any replica; a request on a replica that fails is retried on another.

        Encoding has no side effects, so a repeated call is safe. A retry uses the version that is served by
        then: the replica may have ended because its version was replaced.
        """
        for attempt in itertools.count(1):
            try:
                return model, await model.encoder(tokens)
            except (RayActorError, RayServeException) as error:
                if attempt == ATTEMPTS:
                    message = "no encoder of this model answers; see the logs of Ray Serve"
                    raise RequestError(503, message, code="no_encoder", retry_after=10) from error
            self.metrics.retries.inc()
            await asyncio.sleep(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
            model = self.models.get(model.served.name, model)
        raise AssertionError


async def call(encoder: DeploymentHandle, tokens: Tokens) -> np.ndarray:
    """[n, d] pooled vectors from any replica. Cancelling this coroutine cancels the call on the replica."""
    response = encoder.encode.remote(tokens)
    try:
        vectors: np.ndarray = await response
    except asyncio.CancelledError:
        response.cancel()  # drops it from the queue of the replica
        raise
    return vectors


def ingress_application(
    models: list[ServedModel], limits: Limits, endpoint: Endpoint, key_digests: tuple[bytes, ...]
) -> Any:
    """The application in front of the encoders. Deployed again at the same address, it keeps its replicas.

    The version covers what the constructor depends on. A replica that was replaced would refuse connections
    until the next one listens; models, limits and keys arrive through `reconfigure` instead.

    Args:
        key_digests: SHA-256 of the keys that clients may send; empty: no key is needed.
    """
    config = {
        "models": [asdict(model) for model in models],
        "limits": asdict(limits),
        "key_digests": [digest.hex() for digest in key_digests],
    }
    deployment: Any = with_version(
        Ingress,  # type: ignore[arg-type]
        fingerprint([__version__, endpoint.host, endpoint.port]),
        max_ongoing_requests=limits.ongoing_requests,
        ray_actor_options={"num_cpus": NUM_CPUS},
        user_config=config,
    )
    return deployment.bind(endpoint)

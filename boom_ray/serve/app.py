"""The endpoint: an encoder behind OpenAI's embeddings API, as one Ray Serve deployment.

A request is checked and tokenized in one thread and encoded in another, together with the requests that
arrived beside it; the event loop stays free, so `GET /health` answers while the model computes.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import itertools
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve
from starlette.exceptions import HTTPException

from boom_ray import storage
from boom_ray.errors import BoomError
from boom_ray.model import directory
from boom_ray.progress import console
from boom_ray.serve.request import read_inputs, respond, shorten
from boom_ray.serve.schema import (
    EmbeddingRequest,
    EmbeddingResponse,
    ErrorResponse,
    Model,
    ModelList,
    RequestError,
)

APPLICATION, DEPLOYMENT = "boom-ray", "encoder"
KEY_VARIABLE = "BOOM_RAY_API_KEY"
MAX_ONGOING_REQUESTS = 256
MAX_BATCH_REQUESTS = 64
BATCH_WAIT_SECONDS = 0.003
INPUT_KINDS = "a text, a list of texts, a list of token ids, or a list of lists of token ids"


@dataclass(frozen=True)
class Served:
    """A model as it is served.

    Attributes:
        uri: Its directory.
        name: What clients call it.
        version: Sent with every answer in the header `x-model-version`.
        threads: Threads it computes with.
        device: Where it computes, `cpu` or `cuda`.
        key_digest: SHA-256 of the key that clients must send; None lets everyone in.
    """

    uri: str
    name: str
    version: str
    threads: int
    device: str
    key_digest: bytes | None


# A model that cannot be loaded is not mended by trying again, so one failure ends the start.
@serve.deployment(name=DEPLOYMENT, max_ongoing_requests=MAX_ONGOING_REQUESTS, max_constructor_retry_count=1)
@serve.ingress()
class EmbeddingServer:
    """One replica: the loaded encoder and its two threads."""

    def __init__(self, served: Served) -> None:
        torch.set_num_threads(served.threads)
        self.served, self.started = served, int(time.time())
        local = storage.local_directory(served.uri)
        self.encoder = directory.load_encoder(local, device=served.device).for_inference()
        # The tokenizer keeps truncation as state, so it belongs to one thread.
        self.tokenizing, self.encoding = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self)

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        """Answer one request.

        Raises:
            RequestError: if it asks for what the model cannot give.
        """
        if request.model not in (None, self.served.name):
            message = f"no model {request.model!r} is served here; it is {self.served.name!r}"
            raise RequestError(404, message, "model", "model_not_found")
        loop = asyncio.get_running_loop()
        token_ids = await loop.run_in_executor(self.tokenizing, read_inputs, self.encoder, request)
        vectors = await self.encode(token_ids)
        return respond(shorten(vectors, request.dimensions), token_ids, request, self.served.name)

    @serve.batch(max_batch_size=MAX_BATCH_REQUESTS, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def encode(self, requests: list[list[list[int]]]) -> list[np.ndarray]:
        """Encode the inputs of several requests together; called with one, as Serve gathers them."""
        token_ids = list(itertools.chain.from_iterable(requests))
        loop = asyncio.get_running_loop()
        vectors = await loop.run_in_executor(self.encoding, self.encoder.encode_tokens, token_ids)
        return np.split(vectors, np.cumsum([len(request) for request in requests])[:-1])


# ── HTTP ───────────────────────────────────────────────────────────────────────────────────────────


def build_app(server: EmbeddingServer) -> FastAPI:
    """The routes of one replica: every answer names the model's version, errors have OpenAI's shape."""
    served = server.served
    app = FastAPI(title=f"boom-ray: {served.name}", version=served.version)

    @app.post("/v1/embeddings", responses={422: {"model": ErrorResponse}})
    async def embeddings(request: EmbeddingRequest) -> EmbeddingResponse:
        return await server.embed(request)

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[Model(id=served.name, created=server.started)])

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": served.name, "version": served.version}

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path.startswith("/v1/") and not is_allowed(request, served.key_digest):
            message = "send the server's key in the header: Authorization: Bearer KEY"
            response: Response = _answer(RequestError(401, message, code="invalid_api_key"))
        else:
            response = await call_next(request)
        response.headers["x-model-version"] = served.version
        return response

    _answer_errors(app, served.version)
    return app


def is_allowed(request: Request, key_digest: bytes | None) -> bool:
    """Whether a request carries the key; equal time for every wrong one."""
    if key_digest is None:
        return True
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    given = hashlib.sha256(key.strip().encode("latin-1")).digest()
    return hmac.compare_digest(given, key_digest) and scheme.lower() == "bearer"


def _answer(error: RequestError) -> JSONResponse:
    return JSONResponse(error.body.model_dump(), error.status)


def _answer_errors(app: FastAPI, version: str) -> None:
    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return _answer(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return _answer(explain(error))

    @app.exception_handler(HTTPException)
    async def unroutable(_: Request, error: HTTPException) -> JSONResponse:
        return _answer(RequestError(error.status_code, str(error.detail)))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        response = _answer(RequestError(500, "the server failed; its log says why", code="internal_error"))
        response.headers["x-model-version"] = version  # this handler stands outside of all middleware
        return response


def explain(error: RequestValidationError) -> RequestError:
    """The first thing that is wrong with a body, in one sentence that does not repeat the input."""
    first = error.errors()[0]
    key = str(first["loc"][1]) if len(first["loc"]) > 1 else None
    if first["type"] == "json_invalid":
        return RequestError(400, "the body is not valid JSON", code="invalid_json")
    if key == "input":
        return RequestError(422, f"input must be {INPUT_KINDS}", key, first["type"])
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(EmbeddingRequest.model_fields)
        return RequestError(422, f"unknown key {key!r}; allowed: {allowed}", key, first["type"])
    return RequestError(422, f"{key or 'the body'}: {first['msg']}", key, first["type"])


# ── Starting and stopping ──────────────────────────────────────────────────────────────────────────


def serve_model(model: str, host: str = "127.0.0.1", port: int = 8000, blocking: bool = True) -> None:
    """Serve a model over HTTP, on the Ray cluster this process is connected to.

    Clients must send the key that the environment variable BOOM_RAY_API_KEY holds, if it holds one.

    Args:
        model: URI of a model directory.
        host: Address to listen at; any but loopback needs a key.
        port: TCP port.
        blocking: Return after Ctrl-C or SIGTERM, when everything is shut down. Otherwise return when the
            endpoint is ready, and leave it to the caller to end it with `ray.serve.shutdown()`.

    Raises:
        BoomError: if there is no such model, it cannot be loaded, the host needs a key, the port is taken,
            or the cluster runs Ray Serve already.
    """
    key = os.environ.get(KEY_VARIABLE, "")
    _check_host(host, key)
    _check_port(host, port)
    served = _describe(model, key)
    if serve.status().proxies:
        raise BoomError("this Ray cluster runs Ray Serve already; end that first with `serve shutdown`")
    try:
        _start(served, host, port)
    except BaseException:
        serve.shutdown()
        raise
    _print_ready(served, host, port)
    if blocking:
        _wait_for_signal()
        serve.shutdown()


def _check_host(host: str, key: str) -> None:
    if key or host == "localhost":
        return
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:  # a name, which may resolve to anything
        pass
    raise BoomError(
        f"--host {host} lets other machines in, and there is no key. Set {KEY_VARIABLE} to the key that "
        "clients must send, or serve at 127.0.0.1"
    )


def _check_port(host: str, port: int) -> None:
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        raise BoomError(
            f"cannot listen at {host}, port {port}: {error}. Give another --port or --host"
        ) from error


def _describe(model: str, key: str) -> Served:
    directory.read_spec(storage.local_directory(model))
    identity = directory.identify(model)
    resources = ray.cluster_resources()
    return Served(
        uri=model,
        name=identity.name,
        version=identity.version,
        threads=max(1, min(int(resources.get("CPU", 1)), os.cpu_count() or 1)),
        device="cuda" if resources.get("GPU") else "cpu",
        key_digest=hashlib.sha256(key.encode()).digest() if key else None,
    )


def _start(served: Served, host: str, port: int) -> None:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": host, "port": port})
    num_gpus = 1 if served.device == "cuda" else 0
    deployment: Any = EmbeddingServer.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": 1, "num_gpus": num_gpus}
    )
    try:
        serve.run(deployment.bind(served), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise BoomError(f"{served.uri}: cannot be served: {_why_it_failed()}") from error


def _why_it_failed() -> str:
    """The last line of what the replica's constructor raised."""
    message = serve.status().applications[APPLICATION].deployments[DEPLOYMENT].message
    return message.strip().splitlines()[-1].removeprefix("boom_ray.errors.BoomError: ")


def _print_ready(served: Served, host: str, port: int) -> None:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
    key = f'-H "Authorization: Bearer ${KEY_VARIABLE}" ' if served.key_digest else ""
    console.print(f"serving {served.name} {served.version} at {url}", markup=False)
    console.print(
        f"  curl {url}/v1/embeddings -H 'Content-Type: application/json' {key}-d '{{\"input\": \"a text\"}}'",
        markup=False,
    )


def _wait_for_signal() -> None:
    """Return upon Ctrl-C or SIGTERM."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)

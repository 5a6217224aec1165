"""The middleware around every route: request id, key, size limits, access log and metrics.

Plain ASGI, not Starlette's `BaseHTTPMiddleware`: a body that is too large is refused before it is in memory,
and response chunks pass without overhead.
"""

import hashlib
import hmac
import json
import logging
import string
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from boom_ray.serve.limits import Limits
from boom_ray.serve.schema import RequestError

OPEN = ("/health", "/ready", "/docs", "/openapi.json")
VERSION_HEADER = "x-model-version"
PRINTABLE = string.punctuation.replace("%", "")  # what else a version contains is percent-encoded
CLIENT_CLOSED = 499  # nginx's status for a client that disconnects before the response
access_log = logging.getLogger("ray.serve")  # so that it is in Ray Serve's log files


class Guard:
    """ASGI middleware.

    Args:
        key_digests: Returns SHA-256 of the keys that open the routes.
        limits: Returns the current limits.
        refuse: Makes the response to an error.
        version: Returns the version of the default model, for responses that no model computed.
        on_answer: Called with route, version, status and seconds of every response.
    """

    def __init__(
        self,
        app: ASGIApp,
        key_digests: Callable[[], tuple[bytes, ...]],
        limits: Callable[[], Limits],
        refuse: Callable[[RequestError], ASGIApp],
        version: Callable[[], str],
        on_answer: Callable[[str, str, int, float], None],
    ) -> None:
        self.app, self.key_digests, self.limits = app, key_digests, limits
        self.held_bytes = self.ongoing = 0
        self.refuse, self.version, self.on_answer = refuse, version, on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        since, status = time.perf_counter(), CLIENT_CLOSED
        headers = Headers(scope=scope)
        scope["request_id"] = headers.get("x-request-id", "")[:64] or uuid.uuid4().hex

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                response = MutableHeaders(scope=message)
                response["x-request-id"] = scope["request_id"].encode("latin-1", "replace").decode("latin-1")
                response[VERSION_HEADER] = quote(scope.get("model_version") or self.version(), safe=PRINTABLE)
            await send(message)

        error = self._error(scope, headers)
        body = BodyCounter(self, receive)
        self.ongoing += 1
        try:
            app = self.refuse(error) if error else self.app
            await app(scope, body.receive, send_with_headers)
        except Exception:
            access_log.exception("request %s failed", scope["request_id"])
            failure = RequestError(500, "internal error; the server's log has details", code="internal_error")
            await self.refuse(failure)(scope, receive, send_with_headers)
        finally:
            self.ongoing -= 1
            self.held_bytes -= body.received
            self._report(scope, status, time.perf_counter() - since)

    def _error(self, scope: Scope, headers: Headers) -> RequestError | None:
        """The reason to refuse a request before its body is read, if any."""
        authorization = headers.get("authorization", "")
        if scope["path"] not in OPEN and not is_allowed(authorization, self.key_digests()):
            message = "send the server's key in the header: Authorization: Bearer KEY"
            return RequestError(401, message, code="invalid_api_key")
        length, allowed = headers.get("content-length", "0"), self.limits().body_bytes
        if not length.isdecimal() or int(length) > allowed:
            return RequestError(413, too_large(allowed), code="body_too_large")
        if self.ongoing >= self.limits().ongoing_requests and scope["path"] not in OPEN:
            message = f"overloaded: {self.ongoing} requests are in progress; retry in a second"
            return RequestError(429, message, code="overloaded", retry_after=1)
        return None

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        """Count the request and log it: never its text, nor its key."""
        route = getattr(scope.get("route"), "path", "other")  # the template: paths would be unbounded labels
        version = scope.get("model_version") or self.version()
        self.on_answer(route, version, status, seconds)
        line: dict[str, Any] = {
            "request_id": scope["request_id"], "method": scope["method"], "route": route, "status": status,
            "milliseconds": round(seconds * 1000, 1), "version": version, "tokens": scope.get("num_tokens"),
        }  # fmt: skip
        access_log.info(json.dumps(line))


class BodyCounter:
    """The body of one request, counted while it arrives: `content-length` may be missing or wrong."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self.guard, self.receive_more, self.received = guard, receive, 0

    async def receive(self) -> Message:
        """The next message of the client.

        Raises:
            HTTPException: with 413 if this body is too large, with 429 if all held bodies together are.
        """
        message, limits = await self.receive_more(), self.guard.limits()
        length = len(message.get("body", b""))
        self.received += length
        self.guard.held_bytes += length
        if self.received > limits.body_bytes:
            raise HTTPException(413, too_large(limits.body_bytes))
        if self.guard.held_bytes > limits.held_bytes:
            raise HTTPException(429, f"overloaded: {limits.held_bytes} bytes are held; retry in a second")
        return message


def too_large(allowed: int) -> str:
    """The message about a body that is too large."""
    return f"the body is too large; allowed: {allowed} bytes. Split it into several requests"


def digests(keys: Iterable[str]) -> tuple[bytes, ...]:
    """SHA-256 of each key: the keys themselves are not sent through Ray."""
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


def is_allowed(authorization: str, key_digests: tuple[bytes, ...]) -> bool:
    """Whether a header contains one of the keys, in the same time for every wrong one."""
    if not key_digests:
        return True
    scheme, _, key = authorization.partition(" ")
    received = hashlib.sha256(key.strip().encode("latin-1", "replace")).digest()
    matches = [hmac.compare_digest(received, allowed) for allowed in key_digests]
    return any(matches) and scheme.lower() == "bearer"

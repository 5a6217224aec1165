"""What stands around every route: an identity for the request, the key, the size, the log and the metrics.

Plain ASGI, so that a body that is too long is refused before it is in memory, and nothing is paid per chunk.
"""

import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from boom_ray.serve.limits import Limits
from boom_ray.serve.schema import RequestError

OPEN = ("/health", "/ready", "/docs", "/openapi.json")
VERSION = "x-model-version"
log = logging.getLogger("ray.serve")


class Guard:
    """ASGI middleware.

    Args:
        limits: What is let in, as it is at the time.
        refuse: Sends an error.
        version: The version of the default model, for answers that no model gave.
        answered: Told route, version, status and seconds of every answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        key_digests: tuple[bytes, ...],
        limits: Callable[[], Limits],
        refuse: Callable[[RequestError], ASGIApp],
        version: Callable[[], str],
        answered: Callable[[str, str, int, float], None],
    ) -> None:
        self.app, self.key_digests, self.limits = app, key_digests, limits
        self.held_bytes = self.ongoing = 0
        self.refuse, self.version, self.answered = refuse, version, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        since, status = time.perf_counter(), 499  # what a client that goes away is logged as
        headers = Headers(scope=scope)
        scope["request_id"] = headers.get("x-request-id", "")[:64] or uuid.uuid4().hex

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = scope["request_id"].encode("latin-1", "replace").decode("latin-1")
                answer[VERSION] = scope.get("model_version") or self.version()
            await send(message)

        error = self._error(scope, headers)
        body = Body(self, receive)
        self.ongoing += 1
        try:
            app = self.refuse(error) if error else self.app
            await app(scope, body.receive, sending)
        except Exception:
            log.exception("request %s failed", scope["request_id"])
            failure = RequestError(500, "the server failed; its log says why", code="internal_error")
            await self.refuse(failure)(scope, receive, sending)
        finally:
            self.ongoing -= 1
            self.held_bytes -= body.received
            self._report(scope, status, time.perf_counter() - since)

    def _error(self, scope: Scope, headers: Headers) -> RequestError | None:
        if scope["path"] not in OPEN and not is_allowed(headers.get("authorization", ""), self.key_digests):
            message = "send the server's key in the header: Authorization: Bearer KEY"
            return RequestError(401, message, code="invalid_api_key")
        length, allowed = headers.get("content-length", "0"), self.limits().body_bytes
        if not length.isdecimal() or int(length) > allowed:
            return RequestError(413, too_long(allowed), code="body_too_large")
        if self.ongoing >= self.limits().ongoing_requests and scope["path"] not in OPEN:
            message = f"{self.ongoing} requests are under way already; come back in a second"
            return RequestError(429, message, code="overloaded", retry_after=1)
        return None

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        version = scope.get("model_version") or self.version()
        self.answered(route, version, status, seconds)
        line: dict[str, Any] = {
            "request_id": scope["request_id"], "method": scope["method"], "route": route, "status": status,
            "milliseconds": round(seconds * 1000, 1), "version": version, "tokens": scope.get("num_tokens"),
        }  # fmt: skip
        log.info(json.dumps(line))


class Body:
    """Of one request: counted while it arrives, and refused if it, or all that are held, are too long."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self.guard, self.receive_more, self.received = guard, receive, 0

    async def receive(self) -> Message:
        """The next message of the client.

        Raises:
            HTTPException: if there is too much of it.
        """
        message, limits = await self.receive_more(), self.guard.limits()
        length = len(message.get("body", b""))
        self.received += length
        self.guard.held_bytes += length
        if self.received > limits.body_bytes:
            raise HTTPException(413, too_long(limits.body_bytes))
        if self.guard.held_bytes > limits.held_bytes:
            raise HTTPException(429, f"{limits.held_bytes} bytes are held already; come back in a second")
        return message


def too_long(allowed: int) -> str:
    """What is said of a body that is."""
    return f"the body is too long; allowed: {allowed} bytes. Send several requests"


def digests(keys: Iterable[str]) -> tuple[bytes, ...]:
    """SHA-256 of each key."""
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


def is_allowed(authorization: str, key_digests: tuple[bytes, ...]) -> bool:
    """Whether a header carries one of the keys; equal time for every wrong one."""
    if not key_digests:
        return True
    scheme, _, key = authorization.partition(" ")
    given = hashlib.sha256(key.strip().encode("latin-1", "replace")).digest()
    matches = [hmac.compare_digest(given, known) for known in key_digests]
    return any(matches) and scheme.lower() == "bearer"

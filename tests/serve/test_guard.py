"""The middleware around every route, without Ray: limits on bodies and requests."""

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI, Request

from boom_ray.serve.error_responses import add_error_handlers, error_response
from boom_ray.serve.guard import Guard
from boom_ray.serve.limits import Limits

LIMITS = Limits(pass_tokens=1, max_length=1)


class Endpoint:
    """A route that reads its body, and answers when the test allows it."""

    def __init__(self) -> None:
        self.go, app = asyncio.Event(), FastAPI()

        @app.post("/")
        async def route(request: Request) -> int:
            body = await request.body()
            await self.go.wait()
            return len(body)

        add_error_handlers(app)
        self.seen: list[tuple[Any, ...]] = []
        self.guard = Guard(
            app,
            lambda: (),
            lambda: LIMITS,
            error_response,
            lambda: "v0001",
            lambda *answer: self.seen.append(answer),
        )

    def post(self, *chunks: bytes) -> "asyncio.Task[tuple[int, dict[bytes, bytes], Any]]":
        return asyncio.create_task(self._post(list(chunks)))

    async def _post(self, chunks: list[bytes]) -> tuple[int, dict[bytes, bytes], Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            if not chunks:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
        await self.guard(scope, receive, send)
        body = b"".join(message.get("body", b"") for message in sent)
        return sent[0]["status"], dict(sent[0]["headers"]), json.loads(body)


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def test_waiting_bodies_are_held_up_to_a_limit():
    async def run() -> None:
        endpoint, longest = Endpoint(), b"x" * LIMITS.body_bytes
        waiting = [endpoint.post(longest) for _ in range(LIMITS.held_bytes // LIMITS.body_bytes)]
        await settle()
        status, headers, body = await endpoint.post(b"x")
        assert (status, headers[b"retry-after"], body["error"]["code"]) == (429, b"1", "overloaded")
        endpoint.go.set()
        assert [(await one)[0] for one in waiting] == [200] * len(waiting)
        assert (await endpoint.post(longest))[0] == 200
        assert (endpoint.guard.held_bytes, endpoint.guard.ongoing) == (0, 0)
        assert sorted(status for _, _, status, _ in endpoint.seen) == [200] * (len(waiting) + 1) + [429]

    asyncio.run(run())


def test_a_body_in_chunks_is_refused_at_the_first_chunk_beyond_the_limit():
    async def run() -> None:
        endpoint = Endpoint()
        chunks = [b"x" * (LIMITS.body_bytes - 1), b"xx", b"never read"]
        status, _, body = await endpoint._post(chunks)
        assert (status, body["error"]["code"], chunks) == (413, "body_too_large", [b"never read"])
        assert endpoint.guard.held_bytes == 0

    asyncio.run(run())


def test_requests_beyond_the_limit_are_refused():
    async def run() -> None:
        endpoint = Endpoint()
        waiting = [endpoint.post(b"") for _ in range(LIMITS.ongoing_requests)]
        await settle()
        status, headers, body = await endpoint.post(b"")
        assert (status, headers[b"retry-after"], body["error"]["code"]) == (429, b"1", "overloaded")
        endpoint.go.set()
        assert [(await one)[0] for one in waiting] == [200] * LIMITS.ongoing_requests
        assert endpoint.guard.ongoing == 0

    asyncio.run(run())


@pytest.mark.parametrize(("version", "header"), [
    ("v0001", b"v0001"), ("bag-1 (old)", b"bag-1%20(old)"), ("模型%", b"%E6%A8%A1%E5%9E%8B%25"),
    ("a\nb", b"a%0Ab"),
])  # fmt: skip
def test_any_version_can_be_a_header(version, header):
    async def run() -> None:
        endpoint = Endpoint()
        endpoint.guard.version = lambda: version
        endpoint.go.set()
        status, headers, _ = await endpoint.post(b"x")
        assert (status, headers[b"x-model-version"]) == (200, header)

    asyncio.run(run())

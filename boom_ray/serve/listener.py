"""The HTTP server inside the ingress.

Ray Serve's proxy is another process. It turns every request into a task of an actor and reads the response as
a stream of objects, which on a small machine costs more than a small model. `serve deploy` starts proxies all
the same; they reach the same routes.
"""

import asyncio
import contextlib
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from boom_ray.serve.address import bind

GRACE_SECONDS = 15  # for responses in progress; less than Ray Serve gives a replica to shut down (20 s)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to Ray, which ends its workers by them. uvicorn has no option for it."""
        yield


class Listener:
    """Answers at an address until it is stopped; the listener of a new replica may bind it meanwhile."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",  # Ray Serve runs the lifespan of the same app
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        self.server = _Server(config)

    async def start(self, host: str, port: int) -> None:
        """Return when the server accepts connections.

        Raises:
            InputError: if the address cannot be bound.
        """
        bound = bind(host, port, shared=True)
        self.serving = asyncio.create_task(self.server.serve([bound]))
        while not self.server.started and not self.serving.done():
            await asyncio.sleep(0.01)  # uvicorn sets a flag, and has no event to wait for
        self.check()

    def check(self) -> None:
        """Raise RuntimeError if the server has ended."""
        if self.serving.done():
            raise RuntimeError("the HTTP server ended") from self.serving.exception()

    async def stop(self) -> None:
        """Accept no more connections, and return when all accepted requests are answered."""
        self.server.should_exit = True
        await self.serving

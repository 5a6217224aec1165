"""The HTTP server inside the ingress.

Ray Serve's proxy is another process, which turns every request into a task of an actor and reads the answer
as a stream of objects: on a small machine that costs more than a small model. Where `serve deploy` starts
proxies, they lead to the same routes.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from boom_ray.errors import BoomError

GRACE_SECONDS = 15  # in which answers under way are finished


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are Ray's."""
        yield


class Listener:
    """Answers at an address until it is stopped; a listener of another process may take over meanwhile."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        self.server = _Server(config)

    async def start(self, host: str, port: int) -> None:
        """Return when it listens.

        Raises:
            BoomError: if the address cannot be had.
        """
        bound = bind(host, port, shared=True)
        self.serving = asyncio.create_task(self.server.serve([bound]))
        while not self.server.started and not self.serving.done():
            await asyncio.sleep(0.01)
        self.check()

    def check(self) -> None:
        """Raise RuntimeError if it no longer listens."""
        if self.serving.done():
            raise RuntimeError("the HTTP server ended") from self.serving.exception()

    async def stop(self) -> None:
        """Accept nothing more, and return when all that was accepted is answered."""
        self.server.should_exit = True
        await self.serving


def bind(host: str, port: int, shared: bool) -> socket.socket:
    """A socket at an address; `shared` with others that are so too.

    Raises:
        BoomError: if it cannot be had.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        bound.bind(address)
        return bound
    except (OSError, OverflowError) as error:
        raise BoomError(
            f"cannot listen at {host}, port {port}: {error}. Give another --port or --host"
        ) from error

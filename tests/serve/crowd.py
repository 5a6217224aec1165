"""Clients of an endpoint, and what its processes hold meanwhile."""

import asyncio
import contextlib
import threading
import time

import aiohttp
import numpy as np
import psutil


def processes(kind: str) -> list[psutil.Process]:
    """Those of Ray Serve below this process whose title holds a word."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            title = " ".join(process.cmdline())
            if title.startswith("ray::") and kind in title:
                found.append(process)
    return found


class Crowd:
    """Requests of one kind, and what became of them: status, seconds, and Retry-After."""

    def __init__(self, url: str, body: dict) -> None:
        self.url, self.body = f"{url}/v1/embeddings", body
        self.answers: list[tuple[int, float, str | None]] = []

    async def ask(self, session: aiohttp.ClientSession) -> None:
        since = time.perf_counter()
        async with session.post(self.url, json=self.body) as answer:
            await answer.read()
            seconds = time.perf_counter() - since
            self.answers.append((answer.status, seconds, answer.headers.get("Retry-After")))

    async def closed(self, clients: int, seconds: float) -> None:
        """Clients that each wait for their answer before they ask again."""
        end = time.perf_counter() + seconds

        async def client(session: aiohttp.ClientSession) -> None:
            while time.perf_counter() < end:
                await self.ask(session)

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(client(session) for _ in range(clients)))

    async def open(self, rate: float, seconds: float) -> None:
        """So many requests a second, whatever becomes of them."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            asked = []
            for _ in range(int(rate * seconds)):
                asked.append(asyncio.create_task(self.ask(session)))
                await asyncio.sleep(1 / rate)
            await asyncio.gather(*asked)

    def p99(self) -> float:
        return float(np.percentile([seconds for status, seconds, _ in self.answers if status == 200], 99))


def held() -> dict[str, int]:
    """Bytes that each kind of process holds alone, all of its processes together."""
    return {
        kind: sum(info.rss - info.shared for one in processes(kind) for info in [one.memory_info()])
        for kind in (":ingress", ":encoder")
    }


class Watch:
    """Samples of `held` while a block runs."""

    def __init__(self, every: float) -> None:
        self.every, self.over, self.samples = every, threading.Event(), [held()]
        self.thread = threading.Thread(target=self._sample)

    def _sample(self) -> None:
        while not self.over.wait(self.every):
            self.samples.append(held())

    def __enter__(self) -> list[dict[str, int]]:
        self.thread.start()
        return self.samples

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

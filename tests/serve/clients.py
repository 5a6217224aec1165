"""Load on an endpoint, and the memory of its processes."""

import asyncio
import contextlib
import threading
import time

import aiohttp
import numpy as np
import psutil


def processes(kind: str) -> list[psutil.Process]:
    """Ray processes below this one whose title contains `kind`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # the process has ended
            title = " ".join(process.cmdline())
            if title.startswith("ray::") and kind in title:
                found.append(process)
    return found


class LoadGenerator:
    """Sends one request many times, and keeps status, seconds and Retry-After of every response."""

    def __init__(self, url: str, body: dict) -> None:
        self.url, self.body = f"{url}/v1/embeddings", body
        self.answers: list[tuple[int, float, str | None]] = []

    async def send(self, session: aiohttp.ClientSession) -> None:
        since = time.perf_counter()
        async with session.post(self.url, json=self.body) as answer:
            await answer.read()
            seconds = time.perf_counter() - since
            self.answers.append((answer.status, seconds, answer.headers.get("Retry-After")))

    async def closed(self, clients: int, seconds: float) -> None:
        """A closed loop: each client waits for the response before it sends the next request."""
        end = time.perf_counter() + seconds

        async def client(session: aiohttp.ClientSession) -> None:
            while time.perf_counter() < end:
                await self.send(session)

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(client(session) for _ in range(clients)))

    async def open(self, rate: float, seconds: float) -> None:
        """An open loop: `rate` requests a second, whatever the responses."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            requests = []
            for _ in range(int(rate * seconds)):
                requests.append(asyncio.create_task(self.send(session)))
                await asyncio.sleep(1 / rate)
            await asyncio.gather(*requests)

    def p99(self) -> float:
        return float(np.percentile([seconds for status, seconds, _ in self.answers if status == 200], 99))


def private_memory() -> dict[str, int]:
    """Bytes of private memory of each kind of process, summed over its processes."""
    return {
        kind: sum(info.rss - info.shared for one in processes(kind) for info in [one.memory_info()])
        for kind in (":ingress", ":encoder")
    }


class MemoryMonitor:
    """Samples of `private_memory` while a block runs."""

    def __init__(self, interval: float) -> None:
        self.interval, self.over, self.samples = interval, threading.Event(), [private_memory()]
        self.thread = threading.Thread(target=self._sample)

    def _sample(self) -> None:
        while not self.over.wait(self.interval):
            self.samples.append(private_memory())

    def __enter__(self) -> list[dict[str, int]]:
        self.thread.start()
        return self.samples

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

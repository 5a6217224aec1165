"""Embedding servers in processes of their own, and closed-loop load on them."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import numpy as np
import psutil

from tests.benchmarks.process_tree import kill_tree

MODEL = "test"  # as `tests.base_models.publish` names models


@contextlib.contextmanager
def running(
    command: list[str], port: int, root: str, model: str = MODEL
) -> Iterator[tuple[str, psutil.Process]]:
    """Run a server; yields its URL and its root process once it responds. It prints to stderr.

    Args:
        command: Starts the server at `port` of the loopback interface.
        root: Working directory.
        model: Name of the model that it serves.

    Raises:
        SystemExit: if it ends, or does not respond within five minutes.
    """
    url = f"http://127.0.0.1:{port}/v1/embeddings"
    process = psutil.Popen(command, stdout=sys.stderr, stderr=sys.stderr, cwd=root)
    try:
        deadline = time.monotonic() + 300
        while not asyncio.run(responds(url, model)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{' '.join(command)} does not respond")
            time.sleep(0.5)
        yield url, process
    finally:
        process.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(60)
        kill_tree(process.pid)


async def responds(url: str, model: str) -> bool:
    """Whether a server embeds a text."""
    request = body(["a text"], model)
    try:
        async with aiohttp.ClientSession() as session, session.post(url, json=request) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


def body(texts: list[str], model: str) -> dict[str, Any]:
    """A request of OpenAI's API."""
    return {"input": texts, "model": model}


async def load(
    url: str, texts: list[str], clients: int, inputs: int, seconds: float, model: str = MODEL
) -> dict[str, float]:
    """Requests per second and percentiles of latency in seconds, for clients that never pause."""
    times: list[float] = []
    errors = 0
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        end = time.perf_counter() + seconds

        async def client(number: int) -> None:
            nonlocal errors
            position = number * 17
            while (since := time.perf_counter()) < end:
                chosen = [texts[(position + k) % len(texts)] for k in range(inputs)]
                position += inputs
                async with session.post(url, json=body(chosen, model)) as response:
                    await response.read()
                    if response.status == 200:
                        times.append(time.perf_counter() - since)
                    else:
                        errors += 1

        began = time.perf_counter()
        await asyncio.gather(*(client(number) for number in range(clients)))
        spent = time.perf_counter() - began
    p50, p99 = np.percentile(times, [50, 99], method="lower") if times else (float("nan"), float("nan"))
    rate = len(times) / spent
    return {"rate": rate, "p50": float(p50), "p99": float(p99), "errors": errors, "responses": len(times)}

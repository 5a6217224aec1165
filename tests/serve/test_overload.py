"""Overload and long load: refusals, latency, and the memory of the processes."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator

import aiohttp
import numpy as np
import pytest
from ray import serve

from boom_ray.model import directory
from boom_ray.serve.app import serve_models
from boom_ray.serve.limits import Limits
from boom_ray.serve.serve_settings import ServeSettings
from tests import texts
from tests.serve.clients import LoadGenerator, MemoryMonitor
from tests.serve.test_serve import call, free_port

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(3600)]
SOAK_SECONDS = float(os.environ.get("BOOM_RAY_SOAK_SECONDS", 20 * 60))
MIB = 1 << 20


@pytest.fixture
def busy_url(published_minilm) -> Iterator[str]:
    """An endpoint whose encoder is the bottleneck."""
    port = free_port()
    serve_models([published_minilm], port=port, settings=ServeSettings(pass_tokens=512), blocking=False)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture
def idle_url(published_qwen3) -> Iterator[str]:
    """An endpoint whose encoder is mostly idle."""
    port = free_port()
    serve_models([published_qwen3], port=port, blocking=False)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_at_four_times_its_capacity_an_endpoint_refuses_the_excess_and_answers_the_rest_in_time(
    busy_url, published_minilm
):
    encoder = directory.load_encoder(published_minilm)
    body = {"input": [text[:160] for pair in texts.functions("email") for text in pair][:8], "truncate": True}
    tokens = len(encoder.tokenize(body["input"]).ids)
    at_capacity = Limits(512, 128).waiting_tokens // tokens
    asyncio.run(LoadGenerator(busy_url, body).closed(2, 3))
    normal, more = LoadGenerator(busy_url, body), LoadGenerator(busy_url, body)
    asyncio.run(normal.closed(at_capacity, 20))
    assert {status for status, *_ in normal.answers} == {200}
    rate = len(normal.answers) / 20
    with MemoryMonitor(0.5) as samples:
        asyncio.run(more.open(4 * rate, 30))
    refused = [after for status, _, after in more.answers if status == 429]
    grown = {kind: (max(one[kind] for one in samples) - samples[0][kind]) // MIB for kind in samples[0]}
    statuses = dict(Counter(status for status, *_ in more.answers))
    print(f"normal: {at_capacity} clients, {rate:.1f} requests/s, p99 {normal.p99():.2f} s; "
          f"at 4x: {statuses}, p99 {more.p99():.2f} s; MiB grown by: {grown}")  # fmt: skip
    assert statuses.keys() == {200, 429} and all(int(after or 0) >= 1 for after in refused)
    assert more.p99() <= 2 * normal.p99()
    assert statuses[200] / 30 >= rate / 2
    assert max(grown.values()) < 100
    assert call(f"{busy_url}/v1/embeddings", b'{"input": "afterwards"}')[0] == 200


def test_memory_stays_flat_for_twenty_minutes(idle_url):
    bodies = [
        {"input": "a text"},
        {"input": ["many words " * 10] * 20, "encoding_format": "base64"},
        {"input": ["one", "two"], "dimensions": 8, "input_type": "query"},
        {"input": ""},
        {"input": "too long " * 500},
    ]

    async def load(until: float) -> Counter:
        seen: Counter = Counter()
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < until:
                body = bodies[seen.total() % len(bodies)]
                try:
                    patience = aiohttp.ClientTimeout(0.003 if seen.total() % 50 == 1 else 60)
                    async with session.post(
                        f"{idle_url}/v1/embeddings", json=body, timeout=patience
                    ) as answer:
                        await answer.read()
                        seen[answer.status] += 1
                except TimeoutError:
                    seen["cancelled"] += 1
                await asyncio.sleep(0.2)
        return seen

    with MemoryMonitor(SOAK_SECONDS / 80) as samples:
        seen = asyncio.run(load(time.monotonic() + SOAK_SECONDS))
    print(f"answers: {dict(seen)}")
    assert set(seen) <= {200, 422, "cancelled"} and min(seen[200], seen[422]) > 100
    for kind in samples[0]:
        quarters = np.array_split([one[kind] / MIB for one in samples], 4)
        start, second, third, last = (float(np.median(quarter)) for quarter in quarters)
        print(f"{kind}: medians of the quarters in MiB: {start:.0f}, {second:.0f}, {third:.0f}, {last:.0f}")
        assert last - second < 8

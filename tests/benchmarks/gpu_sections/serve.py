"""Serving in the shape of Qwen3-0.6B, alternating with a plain server on the same device.

The latency of a single client is compared with that of bare forward passes of the same texts, one at a time:
the difference is the way from HTTP to the encoder and back.
"""

import asyncio
import contextlib
import os
import statistics
import sys
from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from tests import base_models
from tests.benchmarks.gpu_sections.bench import Bench
from tests.benchmarks.gpu_sections.clock import forget, seconds_of
from tests.benchmarks.gpu_sections.models import LONGEST, base_model
from tests.benchmarks.gpu_sections.samples import lengths, write_texts
from tests.benchmarks.http_load import load, running
from tests.object_store import free_ports

OURS, PEER = "boom-ray", "plain server"
CLIENTS = (1, 8, 32, 128)
NUM_TEXTS, NUM_WARM = 256, 8
WARM_SECONDS, ROUND_SECONDS, NUM_ROUNDS = 1.0, 2.5, 2
MS_OVER_BARE, SPEEDUP_OF_32 = 3.0, 1.5  # targets

Round = dict[str, dict[str, float]]  # what `load` found, by tool


def run(bench: Bench) -> None:
    """Emit the latency of bare forward passes, then rates and latencies of both servers for every load."""
    base = base_model(bench, "0.6B")
    numbers = lengths("mixed", bench.sized(NUM_TEXTS, 16), bench.sized(LONGEST, 32))
    texts = write_texts(AutoTokenizer.from_pretrained(base), numbers)
    bare = bare_milliseconds(base, bench.device, texts)
    bench.emit("bare forward pass", p50_ms=bare)
    forget()
    model = base_models.publish(base, bench.path("served"), max_length=LONGEST, dtype=torch.bfloat16)
    with servers(model, bench.device) as urls:
        for clients in bench.sized(CLIENTS, CLIENTS[:2]):
            rounds = under_load(bench, urls, texts, clients)
            bench.emit(f"{PEER}, clients: {clients}", **figures_of(rounds, PEER))
            emit_ours(bench, rounds, clients, bare)


@torch.inference_mode()
def bare_milliseconds(base: str, device: str, texts: list[str]) -> float:
    """Median milliseconds from token ids on the device to a vector on the host, one text at a time."""
    model = AutoModel.from_pretrained(base, dtype=torch.bfloat16).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)

    def embed(ids: torch.Tensor) -> torch.Tensor:
        states = model(input_ids=ids, use_cache=False).last_hidden_state
        return normalize(states[0, -1].float(), dim=0).cpu()

    inputs = [tokenizer(text, return_tensors="pt")["input_ids"].to(device) for text in texts]
    seconds = [seconds_of(lambda ids=ids: embed(ids)) for ids in [*inputs[:NUM_WARM], *inputs]]  # type: ignore[misc]
    return statistics.median(seconds[NUM_WARM:]) * 1e3


@contextlib.contextmanager
def servers(model: str, device: str) -> Any:
    """Both servers, side by side on one device; yields their URLs by tool."""
    ours, theirs = free_ports(2)
    serve = ["-m", "boom_ray.cli", "serve", model, "--port", str(ours), "--device", device]
    plain = ["-m", "tests.benchmarks.plain_server", model, str(theirs), device, "bfloat16"]
    root = os.getcwd()
    with (
        running([sys.executable, *serve], ours, root) as (our_url, _),
        running([sys.executable, *plain], theirs, root) as (their_url, _),
    ):
        yield {OURS: our_url, PEER: their_url}


def under_load(bench: Bench, urls: dict[str, str], texts: list[str], clients: int) -> list[Round]:
    """Alternate the servers under the load of a number of clients, after a warm-up."""

    def round_of(seconds: float) -> Round:
        limit = bench.sized(seconds, 0.5)
        return {tool: asyncio.run(load(url, texts, clients, 1, limit)) for tool, url in urls.items()}

    round_of(WARM_SECONDS)
    return [round_of(ROUND_SECONDS) for _ in range(NUM_ROUNDS)]


def figures_of(rounds: list[Round], tool: str) -> dict[str, float]:
    """Medians over rounds, and the number of requests that failed in all of them."""
    rate, p50, p99 = (statistics.median(one[tool][key] for one in rounds) for key in ("rate", "p50", "p99"))
    errors = sum(one[tool]["errors"] for one in rounds)
    return {"texts_per_second": rate, "p50_ms": p50 * 1e3, "p99_ms": p99 * 1e3, "errors": errors}


def emit_ours(bench: Bench, rounds: list[Round], clients: int, bare: float) -> None:
    """Emit our figures, with the targets of 1 and 32 clients."""
    figures = figures_of(rounds, OURS)
    figures["speedup"] = statistics.median(one[OURS]["rate"] / one[PEER]["rate"] for one in rounds)
    at_least, at_most = {}, {"errors": 0.0}
    if clients == 1:
        figures["ms_over_bare"] = figures["p50_ms"] - bare
        at_most["ms_over_bare"] = MS_OVER_BARE
    if clients == 32:
        at_least["speedup"] = SPEEDUP_OF_32
    bench.emit(f"{OURS}, clients: {clients}", at_least, at_most, **figures)

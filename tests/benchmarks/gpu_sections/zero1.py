"""The whole pipeline with ZeRO 1: `run`, then `embed` and `serve` of the model that it made."""

import asyncio
import json
import os
import sys

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from sentence_transformers import SentenceTransformer

from tests import texts
from tests.benchmarks.gpu_sections.bench import Bench
from tests.benchmarks.gpu_sections.models import LONGEST
from tests.benchmarks.gpu_sections.pipeline import (
    boom_ray,
    layout,
    local_ray,
    median_of,
    steps_of,
    write_recipe,
)
from tests.benchmarks.gpu_sections.samples import lengths, write_texts
from tests.benchmarks.http_load import body, load, running
from tests.object_store import free_ports

NAME = "zero1"  # of the run and of its model
NUM_COMPARED = 32
LEAST_COSINE = 0.99  # of vectors computed in bfloat16 to those in float32


def run(bench: Bench) -> None:
    """Emit the times of all commands, and whether the vectors are those of sentence-transformers."""
    with local_ray():
        model = trained(bench)
        reference = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": "float32"})
        numbers = lengths("mixed", bench.sized(10_000, 64), bench.sized(LONGEST, 32))
        inputs = write_texts(reference.tokenizer, numbers)
        expected = reference.encode(inputs[:NUM_COMPARED])
        embedded(bench, model, inputs, expected)
        served(bench, model, inputs, expected)


def trained(bench: Bench) -> str:
    """Run the pipeline; returns the URI of the merged model."""
    tasks = bench.path("pipeline", "tasks")
    texts.write_beir(f"{tasks}/held_out/email", list(texts.functions("email"))[-16:])
    recipe = write_recipe(bench, NAME, bench.sized(60, 4), evaluation=tasks, zero_stage=1)
    seconds = boom_ray("run", recipe)
    made = layout(bench, NAME)
    for bag in ("bag-1", "bag-2"):
        steps = steps_of(made.model(bag))
        rate, mfu = (median_of(steps, name) for name in ("tokens_per_second", "mfu"))
        bench.emit(f"training of {bag}, ZeRO 1", steps=len(steps), tokens_per_second=rate, mfu=mfu)
    with open(made.evaluation, encoding="utf-8") as file:
        score = json.load(file)["means"]["merged"]["all"]["ndcg@10"]
    bench.emit("boom-ray run, ZeRO 1", seconds=seconds, ndcg_at_10=score)
    return made.model("v0001")


def embedded(bench: Bench, model: str, inputs: list[str], expected: np.ndarray) -> None:
    """Embed parquet files."""
    source, target = bench.path("pipeline", "texts"), bench.path("pipeline", "vectors")
    os.makedirs(source)
    for part in range(4):
        ids = list(range(part, len(inputs), 4))
        table = pa.table({"id": ids, "text": [inputs[index] for index in ids]})
        pq.write_table(table, os.path.join(source, f"{part}.parquet"))
    seconds = boom_ray("embed", model, source, target)
    rows = ds.dataset(target).to_table(columns=["id", "embedding"]).sort_by("id")
    vectors = np.stack(rows["embedding"].to_numpy()[: len(expected)])
    cosine = smallest_cosine(vectors, expected)
    bench.emit("boom-ray embed", seconds=seconds, rows=len(rows), smallest_cosine=cosine)
    assert cosine >= LEAST_COSINE and len(rows) == len(inputs)


def served(bench: Bench, model: str, inputs: list[str], expected: np.ndarray) -> None:
    """Serve the model, and send it some load."""
    port = free_ports(1)[0]
    options = ["--device", bench.device, "--port", str(port)]
    command = [sys.executable, "-m", "boom_ray.cli", "serve", model, *options]
    with running(command, port, os.getcwd(), NAME) as (url, _):
        vectors = asyncio.run(vectors_at(url, inputs[: len(expected)]))
        found = asyncio.run(load(url, inputs, 8, 1, bench.sized(3.0, 1.0), NAME))
    figures = {"texts_per_second": found["rate"], "errors": found["errors"]}
    cosine = smallest_cosine(vectors, expected)
    bench.emit(f"boom-ray serve --device {bench.device}", **figures, smallest_cosine=cosine)
    assert cosine >= LEAST_COSINE and not found["errors"]


async def vectors_at(url: str, inputs: list[str]) -> np.ndarray:
    """The vectors that an endpoint returns."""
    async with aiohttp.ClientSession() as session, session.post(url, json=body(inputs, NAME)) as response:
        answer = await response.json()
    return np.array([row["embedding"] for row in answer["data"]])


def smallest_cosine(vectors: np.ndarray, expected: np.ndarray) -> float:
    """Of unit vectors, row by row."""
    return float((vectors * expected).sum(1).min())

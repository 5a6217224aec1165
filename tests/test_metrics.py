"""The metrics of merging and embedding at the Prometheus endpoint."""

import re
import time
import urllib.request
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from boom_ray.embed.embedding_run import embed
from boom_ray.merge.actors import MergeCoordinator


def scraped(label: str) -> dict[str, float]:
    """Values of all boom-ray metrics with a label, by name, and by stage if there is one."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        lines = response.read().decode().splitlines()
    found = {}
    for line in lines:
        if line.startswith("ray_boom_ray_") and label in line:
            stage = re.search(r'[{,]stage="(\w+)"', line)
            name = line.partition("{")[0] + (f" {stage[1]}" if stage else "")
            found[name] = float(line.split()[-1])
    return found


def test_prometheus_gets_the_metrics_of_merging_and_embedding(ray_cluster, published_qwen3, tmp_path):
    coordinator_class: Any = MergeCoordinator
    coordinator = coordinator_class.remote("one-merge-coordinator")
    pq.write_table(
        pa.table({"id": range(40), "text": [f"text {i}" for i in range(40)]}), tmp_path / "in.parquet"
    )
    record = embed(published_qwen3, str(tmp_path / "in.parquet"), str(tmp_path / "scraped-vectors"))
    deadline = time.monotonic() + 40
    while True:
        ray.get(coordinator.report.remote("a file", 5))
        merging, embedding = scraped('merge="one-merge"'), scraped('output="scraped-vectors"')
        if len(merging) == 3 and len(embedding) == 9:
            break
        assert time.monotonic() < deadline, (merging, embedding)
        time.sleep(0.5)
    assert merging["ray_boom_ray_merge_written_bytes"] == 5
    assert embedding["ray_boom_ray_embed_rows_total"] == record.config.rows == 40
    assert embedding["ray_boom_ray_embed_tokens_total"] == record.config.tokens
    assert embedding["ray_boom_ray_embed_done_fraction"] == 1
    seconds = {stage: embedding[f"ray_boom_ray_embed_seconds_total {stage}"] for stage in ("read", "encode")}
    assert all(abs(seconds[stage] - getattr(record.metrics, stage)) < 1e-3 for stage in seconds)

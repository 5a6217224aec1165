"""From zero nodes: every verb asks Ray's own autoscaler for nodes, and they go away afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.job_submission import JobStatus

from boom_ray import artifacts
from tests.autoscaled_cluster import (
    ACCELERATOR,
    ROOT,
    AutoscaledCluster,
    autoscaled_cluster,
    kuberay_types,
    ray_up_types,
)
from tests.conftest import recipe_values
from tests.object_store import free_ports
from tests.texts import functions, write_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AutoscaledCluster]:
    """The cluster of `cluster.yaml`, scaled down."""
    with autoscaled_cluster(ray_up_types(), tmp_path_factory.mktemp("up")) as found:
        yield found


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AutoscaledCluster]:
    """The cluster of `raycluster.yaml`, scaled down."""
    with autoscaled_cluster(kuberay_types(), tmp_path_factory.mktemp("pods")) as found:
        yield found


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of texts."""
    texts = [{"id": number, "text": text} for number, (text, _) in enumerate(functions("email"))]
    return write_jsonl(str(tmp_path_factory.mktemp("texts") / "texts.jsonl"), texts)


def write_recipe(folder: Path, values: dict[str, Any], **execution: Any) -> str:
    values["train"]["execution"] = values["train"]["execution"] | execution
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def last_line(log: str) -> str:
    return log.strip().splitlines()[-1]


def test_a_run_starts_gpu_nodes_for_its_bags_and_they_go_away(cluster, qwen3, corpus_files, beir, tmp_path):
    """The ranks hold a part of a GPU node, and compute on its CPUs with gloo."""
    values = recipe_values(qwen3, corpus_files, beir, str(tmp_path / "runs"))
    rank = {"CPU": 2, ACCELERATOR: 0.001}
    path = write_recipe(tmp_path, values, num_workers="auto", resources_per_worker=rank)
    assert not cluster.nodes(alive=True)
    status, log = cluster.job(f"python jobs/run.py {path}")
    assert status == JobStatus.SUCCEEDED, log
    assert "waiting, " in log and "gpu_spot starting" in log, log
    assert log.count(" steps on 2 ranks") == 2, f"auto counts the nodes that may come: {log}"
    assert artifacts.verify(f"{tmp_path}/runs/tiny/models/v0001")
    started = cluster.nodes(alive=False)
    assert started["gpu_spot"] >= 2 and "gpu_on_demand" not in started, started
    cluster.await_no_nodes()


def test_merge_evaluate_and_embed_start_cpu_nodes(cluster, published_qwen3, beir, rows, tmp_path):
    def done(command: str) -> None:
        status, log = cluster.job(f"python jobs/{command}")
        assert status == JobStatus.SUCCEEDED, log
        cluster.await_no_nodes()

    before = cluster.nodes(alive=False)
    done(f"merge.py {published_qwen3} {published_qwen3} --out {tmp_path}/merged --num-workers 2")
    done(f"evaluate.py {published_qwen3} --data {beir} --device cpu --json {tmp_path}/scores.json")
    done(f"embed.py {published_qwen3} {rows} {tmp_path}/vectors --device cpu")
    assert artifacts.verify(f"{tmp_path}/merged") and artifacts.verify(f"{tmp_path}/vectors")
    assert len(json.loads(Path(tmp_path, "scores.json").read_text())["evaluation"]) == 1
    started = cluster.nodes(alive=False) - before
    assert started.keys() == {"cpu"} and started["cpu"] >= 3


def test_embed_and_evaluate_start_gpu_nodes_and_never_compute_on_cpus_instead(
    cluster, published_qwen3, beir, rows, tmp_path
):
    for command in (
        f"evaluate.py {published_qwen3} --data {beir}",
        f"embed.py {published_qwen3} {rows} {tmp_path}/vectors",
    ):
        before = cluster.nodes(alive=False)
        status, log = cluster.job(f"python jobs/{command}")
        assert status == JobStatus.FAILED
        assert "device cuda was chosen" in last_line(log), log
        assert (cluster.nodes(alive=False) - before)["gpu_spot"] >= 1
    assert not os.path.exists(f"{tmp_path}/vectors")
    cluster.await_no_nodes()


def test_serve_starts_a_node_and_ends_with_it(cluster, published_qwen3):
    [port] = free_ports(1)
    job = cluster.start(f"python jobs/serve.py {published_qwen3} --port {port} --device cpu")
    deadline, answer = time.monotonic() + 240, None
    while answer is None:
        assert time.monotonic() < deadline, cluster.client.get_job_logs(job)
        assert not cluster.client.get_job_status(job).is_terminal(), cluster.client.get_job_logs(job)
        try:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/embeddings",
                json.dumps({"input": "a text"}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=10) as response:
                answer = json.load(response)
        except OSError:
            time.sleep(1)
    assert len(answer["data"][0]["embedding"]) == 32
    assert cluster.nodes(alive=True) == {"cpu": 1}
    cluster.client.stop_job(job)
    cluster.await_no_nodes()


def test_what_no_node_type_has_is_one_error_at_once(
    pods, published_qwen3, qwen3, corpus_files, beir, tmp_path
):
    values = recipe_values(qwen3, corpus_files, beir, str(tmp_path / "runs"))
    path = write_recipe(tmp_path, values, num_workers=8, resources_per_worker={"CPU": 1, "GPU": 1})
    commands = [
        f"run.py {path}",
        f"evaluate.py {published_qwen3} --data {beir} --num-gpus 2",
        f"serve.py {published_qwen3} --min-replicas 40 --max-replicas 40 --device cuda",
    ]
    for command in commands:
        started = time.monotonic()
        status, log = pods.job(f"python jobs/{command}")
        assert status == JobStatus.FAILED and time.monotonic() - started < 120
        line = last_line(log)
        assert line.startswith("error: ") and "the cluster is too small: required are " in line, log
        assert "Its autoscaler may start 2 gpu-spot of {'CPU': 2, 'GPU': 1}" in line
    assert not pods.nodes(alive=False)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AutoscaledCluster]:
    """A cluster whose GPU nodes cannot be started, as where a cloud has no capacity."""
    types = ray_up_types()
    for name in ("gpu_spot", "gpu_on_demand"):
        types[name]["resources"]["object_store_memory"] = 1  # which Ray refuses when a node starts
    with autoscaled_cluster(types, tmp_path_factory.mktemp("broken")) as found:
        yield found


def test_nodes_that_cannot_be_started_are_one_error_at_the_deadline(broken, published_qwen3, rows, tmp_path):
    command = f"python jobs/embed.py {published_qwen3} {rows} {tmp_path}/vectors --start-timeout 30"
    status, log = broken.job(command)
    assert status == JobStatus.FAILED, log
    line = last_line(log)
    assert line.startswith("error: the cluster is too small after 30 s: required are 1 workers of "), log
    assert "gpu_spot failed to start" in line and "--start-timeout" in line, log
    broken.await_no_nodes()


WAIT = """
from boom_ray.runtime import cluster, demand
cluster.connect()
demand.await_capacity({"CPU": 1, "GPU": 1}, 2, timeout_s=600)
"""


def test_demand_ends_with_a_driver_that_is_killed(broken):
    def pending() -> int:
        url = f"{broken.client.get_address()}/api/v0/placement_groups?detail=1"
        with urllib.request.urlopen(url, timeout=30) as response:
            found = json.load(response)["data"]["result"]["result"]
        return sum(group["state"] != "REMOVED" for group in found)

    environment = {**os.environ, "RAY_ADDRESS": broken.address, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, "-c", WAIT], env=environment)
    deadline = time.monotonic() + 120
    while not pending():
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    killed = time.monotonic()
    while pending():
        assert time.monotonic() - killed < 30
        time.sleep(0.5)

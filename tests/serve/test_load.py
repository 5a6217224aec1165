"""A minute of load on an endpoint whose encoders fail and whose versions change: no request fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ray import serve
from transformers import Qwen3ForCausalLM

from boom_ray.model import directory
from boom_ray.runs import versions
from boom_ray.serve.app import serve_models
from boom_ray.serve.serve_settings import ServeSettings
from tests.base_models import publish
from tests.serve.clients import processes
from tests.serve.test_serve import call, cosines, free_port

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(3600)]
MINUTE = 60
INPUT = ["a text", "two words, and more of them"]
TWO_ENCODERS = ServeSettings(pass_tokens=512, min_replicas=2, max_replicas=2)


@pytest.fixture(scope="module")
def run(qwen3, tmp_path_factory) -> str:
    """A run with two versions whose vectors differ."""
    root = tmp_path_factory.mktemp("storage") / "test"
    other = str(tmp_path_factory.mktemp("other") / "qwen3")
    shutil.copytree(qwen3, other)
    model = Qwen3ForCausalLM.from_pretrained(qwen3)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(other)
    publish(qwen3, str(root / "models/v0001"), version="v0001")
    publish(other, str(root / "models/v0002"), version="v0002")
    (root / "run.json").write_text("{}")
    return str(root)


@pytest.fixture
def url(run) -> Iterator[str]:
    """An endpoint of the older version with two encoders."""
    port = free_port()
    serve_models([f"{run}/models/v0001"], port=port, settings=TWO_ENCODERS, blocking=False)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def under_load(url: str, run: str, act: Callable[[], None], seconds: float = MINUTE) -> Counter:
    """Count responses by status and version while `act` runs, for `seconds`.

    Every vector must be that of the version that its response names.
    """
    expected = {v: directory.load_encoder(f"{run}/models/{v}").encode(INPUT) for v in ("v0001", "v0002")}
    assert cosines(expected["v0001"], expected["v0002"]).max() < 0.99
    seen: Counter = Counter()
    until = threading.Event()

    def client() -> None:
        while not until.is_set():
            status, headers, body = call(f"{url}/v1/embeddings", json.dumps({"input": INPUT}).encode())
            version = headers["x-model-version"]
            seen[status, version] += 1
            if status == 200:
                vectors = np.array([row["embedding"] for row in body["data"]])
                assert cosines(vectors, expected[version]).min() > 0.9999

    end = time.monotonic() + seconds
    with ThreadPoolExecutor(4) as threads:
        clients = [threads.submit(client) for _ in range(4)]
        try:
            time.sleep(2)
            act()
            time.sleep(max(2, end - time.monotonic()))
        finally:
            until.set()
        for one in clients:
            one.result()
    print(f"answers: {dict(seen)}")
    return seen


def test_killed_encoders_fail_no_request(url, run):
    killed = []

    def kill() -> None:
        for _ in range(4):
            encoders = processes(":encoder")
            os.kill(encoders[0].pid, signal.SIGKILL)
            killed.append(encoders[0].pid)
            deadline = time.monotonic() + MINUTE
            while len({one.pid for one in processes(":encoder")} - set(killed)) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.5)
            time.sleep(2)

    assert set(under_load(url, run, kill)) == {(200, "v0001")}
    assert len(set(killed)) == 4


def test_a_new_version_and_a_rollback_under_load_fail_no_request(url, run):
    def serve_current() -> None:
        serve_models([versions.model_at(run)], settings=ServeSettings(pass_tokens=512), blocking=False)
        time.sleep(5)

    def switch() -> None:
        serve_current()
        assert call(f"{url}/health")[2]["version"] == "v0002"
        command = [sys.executable, "-m", "boom_ray.cli", "models", "rollback", run, "v0001"]
        subprocess.run(command, check=True)
        serve_current()
        assert call(f"{url}/health")[2]["version"] == "v0001"

    assert set(under_load(url, run, switch)) == {(200, "v0001"), (200, "v0002")}

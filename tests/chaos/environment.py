"""The environment: a cluster of four nodes, and an object store behind a proxy that injects faults."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import yaml

from boom_ray import storage
from tests import texts
from tests.chaos import cluster
from tests.chaos.cluster import DASHBOARD, OUTSIDE
from tests.faulty_proxy import FaultyProxy, faulty_proxy
from tests.object_store import s3_server

ROOT = str(Path(__file__).parents[2])
INPUT = "s3://bucket/input"
SECONDS_FOR_A_JOB = 900
NUM_TEXTS = 300


class Head:
    """A client of the job API, with the token."""

    def __init__(self, working_directory: str) -> None:
        self.working_directory = working_directory
        self.environment = {**os.environ, **cluster.client(), "RAY_ADDRESS": DASHBOARD}

    def submit(self, entrypoint: str) -> str:
        """Run `ray job submit` until the head has the job; returns the job's id."""
        job = f"chaos-{uuid.uuid4().hex}"
        command = ["ray", "job", "submit", "--no-wait", f"--submission-id={job}",
                   f"--working-dir={self.working_directory}", "--", *entrypoint.split()]  # fmt: skip
        deadline = time.monotonic() + SECONDS_FOR_A_JOB
        while True:
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
            if done.returncode == 0 or "submission_id" in self._get(f"/api/jobs/{job}"):
                return job
            if time.monotonic() > deadline:
                raise TimeoutError(done.stdout + done.stderr)
            time.sleep(2)

    def await_end(self, job: str) -> str:
        """Wait for SUCCEEDED, FAILED or STOPPED; LOST if the head does not know the job."""
        deadline = time.monotonic() + SECONDS_FOR_A_JOB
        while time.monotonic() < deadline:
            status = self._get(f"/api/jobs/{job}").get("status", "LOST")
            if status not in ("PENDING", "RUNNING", "UNKNOWN"):
                return status
            time.sleep(0.5)
        raise TimeoutError(f"{job} has not ended after {SECONDS_FOR_A_JOB} s:\n{self.logs(job)}")

    def logs(self, job: str) -> str:
        """Output of the job, as far as the head has it."""
        return self._get(f"/api/jobs/{job}/logs").get("logs", "")

    def _get(self, path: str) -> dict[str, Any]:
        """Response about a job; empty for an unknown job; status UNKNOWN while the head does not respond."""
        try:
            return cluster.get(path)
        except urllib.error.HTTPError as error:
            return {} if error.code == 404 else {"status": "UNKNOWN"}
        except (OSError, ValueError):
            return {"status": "UNKNOWN"}


@contextmanager
def everything() -> Iterator[tuple[Head, FaultyProxy]]:
    """Run a store with the input, a proxy in front of it, and the cluster, until the block ends."""
    swift = os.environ.get("BOOM_RAY_SWIFT_ENV")
    if not swift:
        sys.exit("BOOM_RAY_SWIFT_ENV is not set; tests/run.sh sets it")
    with tempfile.TemporaryDirectory() as directory:
        os.makedirs(f"{directory}/store")
        cluster.create_network()
        try:
            with (
                s3_server(swift, f"{directory}/store") as variables,
                faulty_proxy(int(variables["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]), OUTSIDE) as store,
                patch.dict(os.environ, variables),
            ):
                found, _ = pyarrow.fs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")
                found.create_dir("bucket")
                prepare_input()
                endpoint = {"AWS_ENDPOINT_URL": f"http://{OUTSIDE}:{store.port}"}
                cluster.start({**variables, **endpoint, "OMP_NUM_THREADS": "1"})
                os.mkdir(f"{directory}/job")
                yield Head(write_job(f"{directory}/job")), store
        finally:
            cluster.down()


def prepare_input() -> None:
    """Upload base model, corpus, new data, evaluation tasks and texts to the store."""
    from tests.base_models import build_qwen3

    with tempfile.TemporaryDirectory() as local:
        build_qwen3(f"{local}/qwen3")
        texts.write_corpus(f"{local}/corpus", num_rows=32)
        pairs = list(texts.functions("http"))
        texts.write_jsonl(
            f"{local}/http.jsonl", [{"query": text, "pos": [code]} for text, code in pairs[:16]]
        )
        texts.write_beir(f"{local}/beir/email", list(texts.functions("email"))[12:32])
        names = [f"{index} {pairs[index % len(pairs)][1]}" for index in range(NUM_TEXTS)]
        os.mkdir(f"{local}/texts")
        pq.write_table(pa.table({"id": list(range(NUM_TEXTS)), "text": names}), f"{local}/texts/0.parquet")
        storage.copy_tree(local, INPUT)


def write_job(directory: str) -> str:
    """Write the working directory of a job: code and recipe."""
    from tests.conftest import recipe_values

    for name in ("boom_ray", "jobs"):
        shutil.copytree(os.path.join(ROOT, name), os.path.join(directory, name),
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    files = {name: f"{INPUT}/corpus/{name}.jsonl" for name in ("docstring-to-code", "docstring-to-package")}
    values = recipe_values(f"{INPUT}/qwen3", files, f"{INPUT}/beir", "s3://bucket/unset")
    with open(os.path.join(directory, "recipe.yaml"), "w") as file:
        yaml.safe_dump(values, file)
    return directory

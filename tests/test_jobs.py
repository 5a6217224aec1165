"""`ray job submit` with an object store: a killed job is finished by the next."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import psutil
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from boom_ray import artifacts, storage
from boom_ray.runs import status
from tests import bucket_policy
from tests.faulty_proxy import FaultyProxy, faulty_proxy
from tests.object_store import SECRET_KEY, free_ports, s3_server

ROOT = str(Path(__file__).parents[1])
SWIFT = os.environ.get("BOOM_RAY_SWIFT_ENV")
ENTRYPOINT = "python jobs/run.py jobs/recipes/tiny.yaml --storage s3://bucket/runs"
RUN = "s3://bucket/runs/tiny"
MODELS = f"{RUN}/models"
T = TypeVar("T")

pytestmark = pytest.mark.skipif(not SWIFT, reason="BOOM_RAY_SWIFT_ENV is not set; tests/run.sh sets it")


@pytest.fixture(scope="module")
def object_store(tmp_path_factory) -> Iterator[FaultyProxy]:
    """A bucket on a real S3 server, behind a proxy that records all requests."""
    assert SWIFT is not None
    with (
        s3_server(SWIFT, str(tmp_path_factory.mktemp("s3"))) as variables,
        faulty_proxy(urlsplit(variables["AWS_ENDPOINT_URL"]).port) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in variables.items():
            patch.setenv(name, value)
        store, _ = pyarrow.fs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")
        store.create_dir("bucket")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield proxy


@pytest.fixture(scope="module")
def cluster(object_store, tmp_path_factory) -> Iterator[tuple[JobSubmissionClient, str]]:
    """A head node of `ray start --head`, and a directory with the quickstart's corpus.

    The base model is a tiny Qwen3: its files pass the S3 server, which is written in Python, several times.
    """
    home = str(tmp_path_factory.mktemp("home") / "h")
    builder = [sys.executable, "jobs/quickstart_corpus.py", f"{home}/minilm", "--qwen3", "--rows", "100"]
    subprocess.run(builder, cwd=ROOT, check=True, capture_output=True)
    with head_node() as client:
        yield client, home


@contextmanager
def head_node(
    *options: str, port: int | None = None, num_cpus: int = 2, **variables: str
) -> Iterator[JobSubmissionClient]:
    """A client of a head node with a short temporary directory: a socket's path has at most 107 bytes.

    Args:
        options: Of `ray start`.
        port: Of Ray; by default a free one.
        variables: Environment variables of the node.
    """
    bin_directory = os.path.dirname(sys.executable)
    environment = {**os.environ, "PATH": f"{bin_directory}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"}
    environment |= variables
    environment.pop("RAY_ADDRESS", None)
    free, dashboard, agent = free_ports(3)
    ports = [
        f"--port={port or free}",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",
    ]
    with (
        tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as temporary,
        open(f"{temporary}/log", "w", encoding="utf-8") as log,
    ):
        command = [f"{bin_directory}/ray", "start", "--head", *ports, f"--temp-dir={temporary}"]
        command += [f"--num-cpus={num_cpus}", "--block", "--disable-usage-stats", *options]
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

        def connect() -> JobSubmissionClient:
            assert head.poll() is None, Path(log.name).read_text()
            return JobSubmissionClient(f"http://127.0.0.1:{dashboard}")

        try:
            yield patiently(connect)
        finally:
            if head.poll() is None:
                for process in [*psutil.Process(head.pid).children(recursive=True), head]:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                head.wait(60)


def patiently(attempt: Callable[[], T]) -> T:
    """The result of `attempt`, retried while the head node starts."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return attempt()
        except (ConnectionError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def submit(client: JobSubmissionClient, home: str, entrypoint: str = ENTRYPOINT) -> str:
    runtime = {
        "working_dir": ROOT,
        "env_vars": {"BOOM_RAY_HOME": home},
        "excludes": [".venv", ".git", ".quickstart"],
    }
    return patiently(lambda: client.submit_job(entrypoint=entrypoint, runtime_env=runtime))


def await_end(client: JobSubmissionClient, job: str) -> JobStatus:
    deadline = time.monotonic() + 500
    while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
        time.sleep(0.3)
    return client.get_job_status(job)


def kill_driver() -> None:
    """SIGKILL the process of the job's own script."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if line[1:3] == ["jobs/run.py", "jobs/recipes/tiny.yaml"]:
            os.kill(process.pid, signal.SIGKILL)


def published_bags() -> list[str]:
    return [name for name in storage.list_names(MODELS) if artifacts.read_record(f"{MODELS}/{name}")]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_job_is_finished_by_the_next_and_nothing_is_trained_twice(cluster):
    client, home = cluster
    first = submit(client, home)
    deadline = time.monotonic() + 400
    while not published_bags():
        assert time.monotonic() < deadline and not client.get_job_status(first).is_terminal(), (
            client.get_job_logs(first)
        )
        time.sleep(0.2)
    kill_driver()
    assert await_end(client, first) == JobStatus.FAILED
    published = published_bags()
    before = {
        f"{n}/{f}": i.mtime_ns for n in published for f, i in storage.list_files(f"{MODELS}/{n}").items()
    }
    digests = {name: artifacts.verify(f"{MODELS}/{name}").digest for name in published}
    left = status.read(RUN)
    assert left.state == "lost" and left.drivers[0].facts["job"] == first
    assert {part.name for part in left.making["v0001"] if part.state == "done"} >= {"corpus", *published}

    second = submit(client, home)
    assert await_end(client, second) == JobStatus.SUCCEEDED, client.get_job_logs(second)
    records = {name: artifacts.verify(f"{MODELS}/{name}") for name in ("bag-1", "bag-2", "v0001")}
    assert {name: records[name].digest for name in published} == digests
    after = {
        f"{n}/{f}": i.mtime_ns for n in published for f, i in storage.list_files(f"{MODELS}/{n}").items()
    }
    assert before == after
    last = client.get_job_logs(second).splitlines()[-1]
    assert last == f"model:   {MODELS}/v0001  (digest {records['v0001'].digest})"
    assert {records[name].job for name in published} == {first} and records["v0001"].job == second
    assert status.read(RUN).is_well and status.read(RUN).state == "done"
    everything = json.dumps([record.model_dump() for record in records.values()]) + client.get_job_logs(
        second
    )
    assert SECRET_KEY not in everything


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_stopped_job_is_resumed_by_the_next(cluster):
    client, home = cluster
    run, entrypoint = "s3://bucket/runs/stopped/tiny", ENTRYPOINT.replace("/runs", "/runs/stopped")
    job = submit(client, home, entrypoint)
    deadline = time.monotonic() + 400
    while not any(name.endswith("checkpoint.json") for name in storage.list_files(f"{run}/checkpoints")):
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(0.2)
    client.stop_job(job)
    assert await_end(client, job) == JobStatus.STOPPED
    last = client.get_job_logs(job).splitlines()[-1]
    assert last.startswith("stopped by SIGTERM at v0001, ") and last.endswith("to continue"), last
    found = status.read(run)
    assert (found.state, found.reason, found.drivers[0].facts["job"]) == ("stopped", "by SIGTERM", job)
    again = submit(client, home, entrypoint)
    assert await_end(client, again) == JobStatus.SUCCEEDED, client.get_job_logs(again)
    assert status.read(run).is_well

    refused = submit(client, home, entrypoint.replace("tiny.yaml", "none.yaml"))
    assert await_end(client, refused) == JobStatus.FAILED
    assert client.get_job_logs(refused).splitlines()[-1].startswith("error: jobs/recipes/none.yaml: ")


def test_a_job_embeds_a_store_and_the_dashboard_shows_it(cluster, published_qwen3):
    client, home = cluster
    storage.copy_tree(published_qwen3, "s3://bucket/runs/model")
    with storage.open_output("s3://bucket/runs/texts/0.parquet") as file:
        pq.write_table(pa.table({"id": list(range(300)), "text": [f"text {i}" for i in range(300)]}), file)
    entrypoint = "python jobs/embed.py s3://bucket/runs/model s3://bucket/runs/texts s3://bucket/runs/vectors"
    job = submit(client, home, entrypoint)
    assert await_end(client, job) == JobStatus.SUCCEEDED, client.get_job_logs(job)
    logs = client.get_job_logs(job)
    assert "300/300" in logs and "rows/s" in logs and "s3://bucket/runs/vectors" in logs
    assert artifacts.verify("s3://bucket/runs/vectors").config.rows == 300
    number = client.get_job_info(job).job_id
    with urllib.request.urlopen(f"{client.get_address()}/api/data/datasets/{number}") as response:
        datasets = json.load(response)["datasets"]
    operators = [one["operator"] for dataset in datasets for one in dataset["operators"]]
    assert {dataset["state"] for dataset in datasets} == {"FINISHED"}
    assert any("PartitionEncoder" in operator for operator in operators)


def test_the_bucket_policy_allows_exactly_the_requests_of_the_jobs(object_store):
    with storage.open_output("s3://bucket/runs/large/file") as file:
        file.write(bytes(12 << 20))  # in parts
    assert storage.exists("s3://bucket/runs/large") and len(storage.read_bytes("s3://bucket/runs/large/file"))
    storage.delete_tree("s3://bucket/runs/large")
    # Arrow requests a bucket that cannot exist, to detect the vendor of the server.
    lines = [line for line in object_store.request_lines if "extremelyunlikelytoexist" not in line]
    requests = {bucket_policy.request_of(line) for line in lines}
    assert [one for one in requests if not bucket_policy.allows("bucket", one)] == []
    aborted = {"s3:AbortMultipartUpload"}
    assert {one.action for one in requests} | aborted == bucket_policy.actions()
    for one in requests:
        assert not bucket_policy.allows("elsewhere", one)
        if "/runs/" in one.resource:
            elsewhere = one._replace(resource=one.resource.replace("/runs/", "/walks/"))
            assert not bucket_policy.allows("bucket", elsewhere)
    for line in ("PUT /bucket HTTP/1.1", "DELETE /bucket HTTP/1.1", "GET /bucket?prefix=walks%2F HTTP/1.1"):
        assert not bucket_policy.allows("bucket", bucket_policy.request_of(line))

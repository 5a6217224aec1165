"""The pipeline on a cluster of four nodes under faults, by seed: see `tests.chaos.run`."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.chaos import cluster
from tests.chaos.environment import Head, everything
from tests.chaos.run import run_seeds
from tests.faulty_proxy import FaultyProxy

SEEDS = [int(seed) for seed in os.environ.get("BOOM_RAY_CHAOS_SEEDS", "2,6").split(",")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("ip"),
        reason="network namespaces need root on Linux and iproute2",
    ),
]


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Head, FaultyProxy]]:
    """The cluster, and the proxy in front of the store."""
    if not os.environ.get("BOOM_RAY_SWIFT_ENV"):
        pytest.skip("BOOM_RAY_SWIFT_ENV is not set; tests/run.sh sets it")
    with everything() as both:
        yield both


def status(*headers: str) -> str:
    """HTTP status of the job API for a client with these headers."""
    command = [
        "curl",
        "-s",
        "-o",
        os.devnull,
        "-w",
        "%{http_code}",
        f"{cluster.DASHBOARD}/api/jobs/",
        *headers,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_job_api_requires_the_token(running):
    with open(cluster.TOKEN) as file:
        token = file.read()
    assert status() == "401" and status("-H", "Authorization: Bearer wrong") in ("401", "403")
    assert status("-H", f"Authorization: Bearer {token}") == "200"


@pytest.mark.timeout(3600)
def test_resubmitted_jobs_make_the_artifacts_of_an_undisturbed_run(running):
    calm, *disturbed = run_seeds(*running, SEEDS)
    assert calm.wrong == [] and set(calm.submissions.values()) == {1}
    assert [outcome.wrong for outcome in disturbed] == [[] for _ in SEEDS]
    assert all(outcome.struck for outcome in disturbed)
    assert all(set(outcome.digests) <= set(calm.digests) for outcome in disturbed)

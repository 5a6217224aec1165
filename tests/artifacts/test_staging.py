"""Artifacts on an object store, where several machines may take themselves for the producer."""

import os
from collections.abc import Iterator

import pytest

from boom_ray import artifacts, storage
from boom_ray.artifacts import ModelRecord, staging
from boom_ray.artifacts.record import MARKER, Record
from boom_ray.errors import BoomError
from boom_ray.runtime import processes
from tests.object_store import s3_server

SWIFT = os.environ.get("BOOM_RAY_SWIFT_ENV")
pytestmark = pytest.mark.skipif(not SWIFT, reason="BOOM_RAY_SWIFT_ENV is not set; tests/run.sh sets it")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Iterator[str]:
    """A bucket on a real S3 server."""
    assert SWIFT is not None
    with (
        s3_server(SWIFT, str(tmp_path_factory.mktemp("s3"))) as variables,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in variables.items():
            patch.setenv(name, value)
        storage.filesystem("s3://bucket?allow_bucket_creation=true")[0].create_dir("bucket")
        yield "s3://bucket"


def record() -> Record:
    return ModelRecord(name="n", version="v", fingerprint="f")


def fill(stage: staging.Stage, text: str) -> None:
    with open(os.path.join(stage.local, "file"), "w") as file:
        file.write(text)


def claim_of_another(target: str, name: str) -> None:
    """Leave what a producer leaves that was killed."""
    storage.write_bytes(f"{target}/{MARKER}", f"{name}-0123abcd".encode())
    storage.write_bytes(f"{target}/left", b"half")


def test_a_claim_of_an_earlier_process_with_the_same_pid_is_taken_over(bucket):
    machine, number, started = processes.own_name().rsplit("-", 2)
    claim_of_another(f"{bucket}/again", f"{machine}-{number}-{int(started) - 60_000}")
    with staging.staged(f"{bucket}/again") as stage:
        fill(stage, "whole")
        stage.commit(record())
    assert set(artifacts.verify(f"{bucket}/again").files) == {"file"}


def test_the_claim_of_a_running_process_is_respected(bucket):
    claim_of_another(f"{bucket}/taken", processes.own_name())
    with pytest.raises(BoomError, match="is filling it"):
        staging.Stage(f"{bucket}/taken")


def test_a_replaced_producer_does_not_touch_the_files_of_its_successor(bucket):
    """A node is cut off and taken for dead; another machine does its work; then the node comes back."""
    target = f"{bucket}/fenced"
    with pytest.raises(BoomError, match="another process has taken it over"), staging.staged(target) as old:
        fill(old, "old")
        claim_of_another(target, "elsewhere-1-1")
        old.commit(record())
    assert set(storage.list_files(target)) == {MARKER, "left"}
    with staging.staged(target) as new:
        fill(new, "new")
        new.commit(record())
    late = storage.read_bytes(f"{target}/file")
    with pytest.raises(BoomError, match="exists already"):
        old.commit(record())
    assert late == b"new" == storage.read_bytes(f"{target}/file")
    artifacts.verify(target)

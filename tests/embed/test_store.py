"""Batch embedding over an object store that fails: everything once, or nothing and a clear error."""

import os
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boom_ray import artifacts, storage
from tests import texts
from tests.faulty_proxy import FaultyProxy, faulty_proxy
from tests.object_store import SECRET_KEY, s3_server

ROWS = 300


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[tuple[str, FaultyProxy]]:
    """A bucket behind a proxy that can fail, with rows in it; the environment leads there."""
    environment = os.environ.get("BOOM_RAY_SWIFT_ENV")
    if not environment:
        pytest.skip("BOOM_RAY_SWIFT_ENV is not set; tests/run.sh sets it")
    with (
        s3_server(environment, str(tmp_path_factory.mktemp("s3"))) as variables,
        faulty_proxy(urlsplit(variables["AWS_ENDPOINT_URL"]).port) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        storage.filesystem("s3://texts?allow_bucket_creation=true")[0].create_dir("texts")
        pieces = [
            text
            for name in ("email", "json", "http", "asyncio")
            for pair in texts.functions(name)
            for text in pair
        ]
        for part in range(3):
            ids = range(part * 100, part * 100 + 100)
            table = pa.table({"id": list(ids), "text": [pieces[i] for i in ids]})
            with storage.open_output(f"s3://texts/in/{part}.parquet") as file:
                pq.write_table(table, file)
        yield "s3://texts", proxy


def embed(model: str, bucket: str, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`boom-ray embed` as a user runs it, with the Ray it starts on the spot."""
    command = [sys.executable, "-m", "boom_ray.cli", "embed", model, f"{bucket}/in", f"{bucket}/{name}"]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )


def ids_in(target: str) -> list[int]:
    names = [name for name in artifacts.verify(target).files if name.endswith(".parquet")]
    tables = []
    for name in names:
        with storage.open_input(storage.join(target, name)) as file:
            tables.append(pq.read_table(file))
    return sorted(pa.concat_tables(tables)["id"].to_pylist())


@pytest.mark.slow
def test_uploads_that_are_cut_or_refused_are_repeated(store, published_qwen3):
    bucket, proxy = store
    proxy.fail("reset", times=6)
    run = embed(published_qwen3, bucket, "cut")
    assert run.returncode == 0, run.stdout + run.stderr
    assert proxy.met >= 3 and ids_in(f"{bucket}/cut") == list(range(ROWS))
    assert (
        SECRET_KEY not in run.stdout + run.stderr + artifacts.read_record(f"{bucket}/cut").model_dump_json()
    )


@pytest.mark.slow
def test_a_store_that_stays_down_ends_the_run_without_a_record_and_the_next_finishes(store, published_qwen3):
    bucket, proxy = store
    proxy.fail("500", times=10**6)
    run = embed(published_qwen3, bucket, "down")
    assert run.returncode == 1 and "Traceback" not in run.stderr and "storage failed" in run.stderr, (
        run.stderr
    )
    proxy.fail("", times=0)
    assert artifacts.read_record(f"{bucket}/down") is None
    assert embed(published_qwen3, bucket, "down").returncode == 0
    assert ids_in(f"{bucket}/down") == list(range(ROWS))


@pytest.mark.slow
def test_what_is_not_allowed_or_not_there_fails_before_a_model_is_loaded(store, tmp_path, published_qwen3):
    bucket, _ = store
    os.makedirs(tmp_path / "weightless")
    for name in storage.list_files(published_qwen3):
        if name.endswith(".json") and name != artifacts.RECORD:
            os.makedirs(os.path.dirname(tmp_path / "weightless" / name), exist_ok=True)
            with open(tmp_path / "weightless" / name, "wb") as file:
                file.write(storage.read_bytes(storage.join(published_qwen3, name)))
    model = str(tmp_path / "weightless")
    refused = embed(model, bucket, "refused", AWS_SECRET_ACCESS_KEY="wrong")
    assert refused.returncode == 1 and "storage failed" in refused.stderr and "wrong" not in refused.stderr
    missing = embed(model, "s3://nowhere", "refused")
    assert missing.returncode == 1 and "s3://nowhere/in" in missing.stderr
    assert all("Traceback" not in run.stderr for run in (refused, missing))

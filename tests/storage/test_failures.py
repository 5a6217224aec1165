"""Failures of stores: within a minute, in one sentence, with the cause and the remedy."""

import os
import socket
import time
from collections.abc import Iterator

import pytest

from boom_ray import storage
from boom_ray.errors import InputError, NotFoundError, StorageError
from boom_ray.storage import filesystems

CLOSED = "127.0.0.1:1"


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def no_cloud(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")


def test_a_silent_store_is_given_up(silent, monkeypatch):
    monkeypatch.setattr(filesystems, "SECONDS_TO_ANSWER", 1.0)
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"cannot be reached \(no answer within 1 s\).*endpoint_override"):
        storage.read_bytes(f"gs://anonymous@bucket/a?scheme=http&endpoint_override={silent}")
    assert time.monotonic() - started < 5


def test_a_store_that_refuses_connections_names_the_endpoint():
    with pytest.raises(StorageError, match=r"cannot be reached.*AWS_DEFAULT_REGION.*AWS_ENDPOINT_URL"):
        storage.list_files(f"s3://bucket/a?scheme=http&endpoint_override={CLOSED}")


@pytest.mark.slow
@pytest.mark.parametrize(("uri", "remedy"), [
    (f"gs://anonymous@bucket/a?scheme=http&endpoint_override={CLOSED}", "endpoint_override"),
    (f"abfss://c@a.dfs.core.windows.net/a?credential_kind=anonymous&enable_tls=false"
     f"&blob_storage_authority={CLOSED}&dfs_storage_authority={CLOSED}", "name of the account"),
])  # fmt: skip
def test_other_stores_are_given_up_within_a_minute(uri, remedy):
    started = time.monotonic()
    for use in (storage.list_files, storage.exists, storage.local_directory):
        with pytest.raises(StorageError, match=remedy):
            use(uri)
        assert time.monotonic() - started < 60
        started = time.monotonic()


@pytest.mark.parametrize(("uri", "message"), [
    ("s3://bucket/a?region=x&regoin=y", "'regoin'.*endpoint_override"), ("s3://bucket?regoin=y", "'regoin'"),
    ("s3://bu cket/a", "s3://bucket/key"), ("abfss://container/a", r"container@account\.dfs"),
    ("gs://bucket/a?retry_limit_seconds=no", "retry_limit_seconds"),
])  # fmt: skip
def test_what_is_no_uri_of_a_store_is_an_error_of_the_input(uri, message):
    with pytest.raises(InputError, match=message):
        storage.list_files(uri)


@pytest.mark.parametrize("uri", ["s3:///a", "s3://", "unknown://bucket/a", "S3://bucket/a", "http://host/a"])
def test_a_uri_without_a_store_is_refused(uri):
    with pytest.raises(StorageError, match="s3://bucket/key"):
        storage.list_files(uri)


@pytest.mark.parametrize(("use", "uri", "error"), [
    (storage.local_directory, "hf://nobody/nothing", NotFoundError),
    (storage.local_directory, "hf://nobody/a b", NotFoundError),
    (storage.local_directory, "hf://", NotFoundError),
    (storage.local_directory, "hf://datasets/owner/name", InputError),
    (storage.list_files, "hf://datasets/nobody/nothing", NotFoundError),
    (storage.list_names, "hf://datasets/nobody/nothing@v/data", NotFoundError),
    (storage.is_file, "hf://datasets/nobody/nothing/a.parquet", NotFoundError),
    (storage.read_bytes, "hf://datasets/a b/c", NotFoundError),
    (storage.list_files, "hf://datasets", NotFoundError),
    (storage.list_files, "hf://name", NotFoundError),
])  # fmt: skip
def test_unknown_names_on_the_hub_are_errors(use, uri, error, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=f"^{uri}: .*(HF_HUB_OFFLINE|hf://owner/name)"):
        use(uri)


def test_words_of_a_key_are_no_cause():
    missing = FileNotFoundError("Path does not exist 'bucket/Forbidden/Timeout.txt'")
    with (
        pytest.raises(NotFoundError, match="not found"),
        storage.explained("s3://bucket/Forbidden/Timeout.txt"),
    ):
        raise missing


def test_other_exceptions_pass_unchanged():
    for uri in ("s3://bucket/a", "/data/a", "hf://owner/name"):
        with pytest.raises(KeyError), storage.explained(uri):
            raise KeyError("a defect")


@pytest.mark.parametrize(("found", "message"), [
    ("AWS Error UNKNOWN (HTTP status 301) during HeadBucket operation: Looks like the configured region is "
     "'us-east-1' while the bucket is located in 'eu-west-1'.", "another region.*eu-west.*DEFAULT_REGION"),
    ("AWS Error ACCESS_DENIED during PutObject operation: Access Denied", "forbids access.*AWS_PROFILE"),
    ("AWS Error UNKNOWN (HTTP status 400) during GetObject operation: ExpiredToken", "AWS_ACCESS_KEY_ID"),
    ("AWS Error SLOW_DOWN during PutObject operation: Reduce your request rate", "overloaded"),
])  # fmt: skip
def test_words_of_amazon_are_explained(found, message):
    with pytest.raises(StorageError, match=message), storage.explained("s3://bucket/a"):
        raise OSError(found)

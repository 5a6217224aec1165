"""Storage: URIs, errors, and directories that other processes change while they are read."""

import ast
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import boom_ray
from boom_ray import storage
from boom_ray.errors import InputError, NotFoundError, StorageError

NUM_DIRECTORIES = 2_000
SCHEMES = {"hf:", "s3:", "gs:", "abfss:", ":", "hf", "s3", "gs", "abfss"}


@pytest.mark.parametrize(("uri", "expected"), [
    ("hf://owner/name", ("owner/name", None)), ("hf://owner/name@main", ("owner/name", "main")),
    ("hf://name", ("name", None)),
])  # fmt: skip
def test_hub_uris_name_a_repository_and_a_revision(uri, expected):
    assert storage.is_hub(uri) and not storage.is_local(uri)
    assert storage.hub_name(uri) == expected
    assert storage.hub_uri("@".join(filter(None, expected))) == uri
    assert storage.without_scheme(uri) == uri[5:]


def test_other_uris_are_not_on_the_hub():
    assert not any(storage.is_hub(uri) for uri in ("/hf/owner", "s3://hf/owner", "owner/name"))
    assert storage.without_scheme("s3://bucket/a") == "bucket/a" and storage.without_scheme("/a/b") == "/a/b"


@pytest.mark.parametrize(("uri", "expected"), [
    ("rows/a.jsonl", "s3://bucket/in/rows/a.jsonl"), ("./a.jsonl", "s3://bucket/in/a.jsonl"),
    ("/data/a.jsonl", "/data/a.jsonl"), ("gs://other/a", "gs://other/a"),
])  # fmt: skip
def test_relative_paths_are_resolved_against_a_remote_directory(uri, expected):
    assert storage.absolute(uri, "s3://bucket/in") == expected


def test_relative_paths_stand_before_the_options_of_their_directory():
    assert storage.absolute("a?.jsonl", "s3://bucket/in?region=x") == "s3://bucket/in/a?.jsonl?region=x"


def test_schemes_are_known_to_storage_alone():
    package = Path(boom_ray.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                head, separator, rest = node.value.partition("//")
                if separator and head in SCHEMES and not rest.strip():
                    found.add(str(path.relative_to(package)))
    assert {os.path.dirname(path) for path in found} == {"storage"}


def test_a_missing_file_is_not_found_and_a_broken_store_is_an_error(tmp_path):
    for read in (storage.read_bytes, storage.local_directory, storage.RangeReader):
        with pytest.raises(NotFoundError, match=str(tmp_path / "missing")):
            read(str(tmp_path / "missing"))
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(StorageError, match=str(tmp_path / "file")):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"")
    with pytest.raises(StorageError, match="unknown://bucket"):
        storage.filesystem("unknown://bucket/a")
    with pytest.raises(StorageError, match="byte 12"):
        storage.RangeReader(str(tmp_path / "file")).read_into(memoryview(bytearray(10)), 2)


def test_an_unavailable_hub_model_is_not_found(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NotFoundError, match="hf://nobody/nothing"):
        storage.local_directory("hf://nobody/nothing")


def test_a_directory_may_be_created_while_it_is_listed(tmp_path):
    paths = [f"{tmp_path}/{number}" for number in range(NUM_DIRECTORIES)]
    may_create = [threading.Event() for _ in paths]

    def create():
        for path, event in zip(paths, may_create, strict=True):
            event.wait()
            os.mkdir(path)

    creator = threading.Thread(target=create, daemon=True)
    creator.start()
    for path, event in zip(paths, may_create, strict=True):
        event.set()
        while not os.path.isdir(path):
            assert storage.list_names(path) == [] and storage.list_files(path) == {}
    creator.join()


def test_one_of_several_concurrent_writers_creates_a_file(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        for number in range(50):
            path, start = f"{tmp_path}/{number}/file", threading.Barrier(8)

            def write(content: bytes, path: str = path, start: threading.Barrier = start) -> bool:
                start.wait()
                return storage.create(path, content)

            contents = [b"%d" % writer for writer in range(8)]
            created = list(pool.map(write, contents))
            assert created.count(True) == 1
            assert storage.read_bytes(path) == contents[created.index(True)]
            assert os.listdir(os.path.dirname(path)) == ["file"]


@pytest.mark.parametrize("uri", ["hf://", "hf://owner/name", "hf://datasets/owner/name/file.json"])
def test_nothing_is_written_to_the_hub(uri):
    with pytest.raises(StorageError, match=f"{uri}: the hub is only read"):
        storage.write_bytes(uri, b"content")


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "s3://bucket/\udcff", "hf://owner/\0"])
def test_paths_that_no_file_has_are_refused(path):
    with pytest.raises(InputError, match=r"a path (cannot|must)"):
        storage.absolute(path)

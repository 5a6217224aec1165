"""Storage on a real S3 server: keys of every kind, and what it refuses."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow.fs
import pytest

from boom_ray import storage
from boom_ray.data import rows
from boom_ray.errors import InputError, NotFoundError, StorageError
from boom_ray.merge import distances
from boom_ray.runs import updates
from boom_ray.storage import conditional, download, filesystems
from tests.faulty_proxy import faulty_proxy
from tests.object_store import SECRET_KEY, s3_server

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
NAMES = [
    *(
        "a%2Db.txt",
        "a-b.txt",
        "a b.txt",
        "a#b.txt",
        "a?b.txt",
        "a%b",
        "über/naïve 文.txt",
        "a?region=x",
        "a?region=x?",
    ),
    *("what?", "dir/%20/x%2Fy", "[x]*.txt", "a'b\"c", "line\nbreak"),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[pyarrow.fs.S3FileSystem]:
    """A client that knows nothing of URIs, with a bucket of files that contain their own names."""
    environment = os.environ.get("BOOM_RAY_SWIFT_ENV")
    if not environment:
        pytest.skip("BOOM_RAY_SWIFT_ENV is not set; tests/run.sh sets it")
    with (
        s3_server(environment, str(tmp_path_factory.mktemp("s3"))) as variables,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setattr(filesystems, "_answered", set())
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        endpoint = variables["AWS_ENDPOINT_URL"].removeprefix("http://")
        client = pyarrow.fs.S3FileSystem(
            scheme="http", endpoint_override=endpoint, region="us-east-1", allow_bucket_creation=True
        )
        client.create_dir("keys")
        for name in NAMES:
            with client.open_output_stream(f"keys/in %20#/{name}") as file:
                file.write(name.encode())
        yield client


@pytest.mark.parametrize("options", ["", "?region=us-east-1"])
def test_keys_are_those_of_the_store(client, tmp_path, options):
    directory = f"s3://keys/in %20#{options}"
    assert set(storage.list_files(directory)) == set(NAMES)
    assert set(storage.list_names(directory)) == {name.split("/")[0] for name in NAMES}
    for name in NAMES:
        uri = storage.join(directory, name)
        assert storage.is_file(uri) and storage.read_bytes(uri) == name.encode()
    storage.copy_tree(directory, str(tmp_path / "down"))
    assert set(storage.list_files(str(tmp_path / "down"))) == set(NAMES)
    assert storage.name_of(storage.local_directory(directory)) == "in %20#"


def test_what_is_written_has_the_key_that_was_named(client):
    for name in NAMES[:5]:
        uri = storage.join("s3://keys/out?region=us-east-1", name)
        storage.write_bytes(uri, name.encode())
        with client.open_input_file(f"keys/out/{name}") as file:
            assert file.read() == name.encode()
        storage.delete_file(uri)
        assert not storage.exists(uri)


def test_ranges_of_files_of_any_size_are_copied(client, tmp_path, monkeypatch):
    contents = {f"part/{size}": os.urandom(size) for size in (0, 1, 4095, 4096, 4097, 20_000)}
    for name, content in contents.items():
        storage.write_bytes(f"s3://keys/ranges/{name}", content)
    monkeypatch.setattr(download, "RANGE_BYTES", 4096)
    copy = storage.local_directory("s3://keys/ranges")
    assert {name: storage.read_bytes(f"{copy}/{name}") for name in contents} == contents
    with pytest.raises(StorageError, match="ends before byte 20001"):
        download.download("s3://keys/ranges", {"part/20000": 20_001}, str(tmp_path))


def test_one_of_several_concurrent_writers_creates_an_object(client):
    with ThreadPoolExecutor(4) as pool:
        for number in range(25):
            uri = f"s3://keys/claims/{number} %2D?region=us-east-1"
            contents = [b"%d" % writer for writer in range(4)]
            created = list(pool.map(lambda content, uri=uri: storage.create(uri, content), contents))
            assert created.count(True) == 1
            assert storage.read_bytes(uri) == contents[created.index(True)]
    assert storage.create("s3://keys/claims/two\nlines", b"a"), "a key that the conditional client refuses"
    assert not storage.create("s3://keys/claims/two\nlines", b"b")


@pytest.mark.parametrize("fault", ["500", "reset"])
def test_an_object_is_created_once_though_requests_fail(client, monkeypatch, fault):
    port = int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
    with faulty_proxy(port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        proxy.fail(fault, 1)
        assert storage.create(f"s3://keys/once/{fault}", b"mine") and proxy.met == 1
        assert not storage.create(f"s3://keys/once/{fault}", b"theirs")


def test_a_connection_that_was_dropped_in_silence_is_not_used_again(client, monkeypatch):
    port = int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
    with faulty_proxy(port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        assert storage.create("s3://keys/idle/first", b"a")
        proxy.forget()
        started = time.monotonic()
        assert storage.create("s3://keys/idle/second", b"b")
        assert time.monotonic() - started < 15


def test_a_store_that_does_not_answer_is_an_error_and_no_second_way_is_tried(client, monkeypatch):
    port = int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
    monkeypatch.setattr(conditional, "SECONDS_OF_RETRIES", 0)
    with faulty_proxy(port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        proxy.fail("500", 10)
        with pytest.raises(StorageError, match=r"^s3://keys/once/never: "):
            storage.create("s3://keys/once/never", b"mine")
    monkeypatch.undo()
    assert proxy.met == 1 and not storage.exists("s3://keys/once/never")


def test_a_write_without_a_condition_is_announced(client, monkeypatch, tmp_path, caplog):
    caplog.set_level("WARNING", logger="boom_ray")
    assert storage.create("s3://keys/once/condition", b"a") and not caplog.messages
    profile = tmp_path / "credentials"
    lines = ["[default]", *(f"{name.lower()} = {os.environ[name]}" for name in KEYS)]
    profile.write_text("\n".join(lines))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    for name in KEYS:
        monkeypatch.delenv(name)
    assert storage.create("s3://keys/once/profile", b"a") and not storage.create(
        "s3://keys/once/profile", b"b"
    )
    assert all("s3://keys/once/profile: written without a condition" in line for line in caplog.messages)
    assert caplog.messages


@pytest.mark.parametrize("options", ["", "?region=us-east-1"])
def test_data_files_are_found_by_the_end_of_their_keys(client, options):
    names = ["rows 1%2D.jsonl", "rows#2?.jsonl", "rows*.jsonl"]
    for name in names:
        with client.open_output_stream(f"keys/rows/{name}") as file:
            file.write(b'{"query": "q", "pos": "p"}\n')
    for uri in (f"s3://keys/rows{options}", f"s3://keys/rows/rows*{options}"):
        found = rows.data_files(uri)
        assert [storage.name_of(one) for one in found] == names
        assert [row["query"] for one in found for _, row in rows.read_raw(one)] == ["q"] * 3
    assert rows.data_files(f"s3://keys/rows/rows*.jsonl{options}") == [f"s3://keys/rows/rows*.jsonl{options}"]


def test_options_are_kept_out_of_the_names_of_tasks_and_pictures(client):
    task, region = b"- {name: new, path: rows 1%2D.jsonl, type: retrieval}", "?region=us-east-1"
    storage.write_bytes("s3://keys/rows/new.yaml", task)
    (found,) = updates.read_tasks(f"s3://keys/rows/new.yaml{region}")
    assert found.path == f"s3://keys/rows/rows 1%2D.jsonl{region}"
    assert updates.read_tasks(f"s3://keys/rows/rows.jsonl{region}")[0].name == "rows"
    report = {"models": ["a", "b"], "space": "weights", "layers": {"layer 0": {"angles": [[0, 1], [1, 0]]}}}
    assert distances.write(report, f"s3://keys/report.json{region}") == f"s3://keys/report.png{region}"
    assert storage.read_bytes("s3://keys/report.png").startswith(b"\x89PNG")


def test_a_missing_bucket_is_no_empty_one(client):
    for use in (
        storage.list_files,
        storage.exists,
        storage.is_file,
        storage.read_bytes,
        storage.local_directory,
    ):
        with pytest.raises(NotFoundError, match="there is no bucket nobody"):
            use("s3://nobody/a")
    with pytest.raises(NotFoundError, match="there is no bucket nobody"):
        storage.write_bytes("s3://nobody/a", b"")


def test_a_missing_key_says_how_keys_are_written(client):
    with pytest.raises(NotFoundError, match="not %-encoded"):
        storage.read_bytes("s3://keys/in%20%2520%23/a-b.txt")
    with pytest.raises(InputError, match="two slashes"):
        storage.read_bytes("s3://keys/in//a")
    with pytest.raises(NotFoundError, match="not a file"):
        storage.read_bytes("s3://keys")


@pytest.mark.parametrize(("variables", "remedy"), [
    ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "AWS_SECRET_ACCESS_KEY"),
    ({"AWS_ACCESS_KEY_ID": "nobody"}, "AWS_ACCESS_KEY_ID"),
    ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "AWS_ACCESS_KEY_ID"),
    ({"AWS_DEFAULT_REGION": "eu-west-1"}, "AWS_DEFAULT_REGION"),
])  # fmt: skip
def test_what_the_store_refuses_names_the_remedy(client, monkeypatch, variables, remedy):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for use in (storage.list_files, storage.is_file, storage.read_bytes):
        with pytest.raises(StorageError, match=f"^s3://keys/in: .*{remedy}") as refusal:
            use("s3://keys/in")
        assert SECRET_KEY not in str(refusal.value) and "Traceback" not in str(refusal.value)


WRITE_MUCH = """
import sys
import threading
import time
from boom_ray import storage

def anonymous() -> int:
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

storage.write_bytes("s3://keys/first", b"x")
least, most, ended = anonymous(), 0, threading.Event()

def watch() -> None:
    global most
    while not ended.wait(0.01):
        most = max(most, anonymous())

threading.Thread(target=watch).start()
if sys.argv[1] == "copy":
    storage.copy_tree(sys.argv[2], "s3://keys/copied")
else:
    with storage.open_output("s3://keys/much") as file:
        for _ in range(320):
            file.write(bytes(1 << 20))
ended.set()
print((most - least) >> 20)
"""


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("how", ["write", "copy"])
def test_what_a_store_has_not_received_yet_takes_little_memory(how, tmp_path):
    """The client alone would hold all 320 MiB, since it takes them faster than any store."""
    with open(tmp_path / "large", "wb") as file:
        file.truncate(320 << 20)
    arguments = [sys.executable, "-c", WRITE_MUCH, how, str(tmp_path)]
    mebibytes = int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    assert mebibytes < 160
    name = "copied/large" if how == "copy" else "much"
    assert storage.list_files("s3://keys")[name].size == 320 << 20

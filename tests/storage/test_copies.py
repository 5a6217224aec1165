"""Copies of remote directories: one for all processes, deleted when nobody needs them."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from boom_ray.errors import StorageError
from boom_ray.storage import copies
from boom_ray.storage.copies import UNUSED_SECONDS, shared_copy

USE = """
import sys, time
from pathlib import Path
from boom_ray.storage.copies import shared_copy

def fill(directory):
    print("filled", flush=True)
    time.sleep(1)
    Path(directory, "a").write_bytes(b"x" * 1000)

print(Path(shared_copy("key", "name", 1000, fill), "a").stat().st_size, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(copies, "_used", {})
    return tmp_path / "boom-ray"


def content(size: int) -> Callable[[str], None]:
    return lambda directory: Path(directory, "a").write_bytes(b"x" * size) and None


def made_long_ago(cache: Path, key: str, size: int, seconds: float) -> Path:
    """A copy of a process that has ended."""
    path = cache / key / "name"
    path.mkdir(parents=True)
    (path / "a").write_bytes(b"x" * size)
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def user() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", USE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_one_process_makes_a_copy_and_the_others_wait(cache):
    users = [user() for _ in range(6)]
    lines = [line for one in users for line in one.communicate(timeout=60)[0].split()]
    assert sorted(lines) == ["1000"] * 6 + ["filled"]
    assert {path.name for path in (cache / "key").iterdir()} == {"name"}


def test_a_killed_process_leaves_no_lock_and_no_part_of_a_copy(cache):
    first = user()
    assert first.stdout is not None and first.stdout.readline() == "filled\n"
    first.kill()
    assert user().communicate(timeout=60)[0].split() == ["filled", "1000"]
    assert [path.name for path in (cache / "key").iterdir()] == ["name"]


def test_a_failed_copy_leaves_nothing(cache):
    def fail(directory: str) -> None:
        Path(directory, "a").touch()
        raise StorageError("lost")

    with pytest.raises(StorageError, match="lost"):
        shared_copy("key", "name", 1, fail)
    assert not (cache / "key").exists()
    assert Path(shared_copy("key", "name", 5, content(5)), "a").read_bytes() == b"xxxxx"


def test_old_copies_are_deleted_unless_a_process_uses_them(cache):
    made_long_ago(cache, "key", 1000, 2 * UNUSED_SECONDS)
    old = made_long_ago(cache, "old", 1000, UNUSED_SECONDS + 60)
    recent = made_long_ago(cache, "recent", 1000, UNUSED_SECONDS - 60)
    using = user()
    assert using.stdout is not None and using.stdout.readline() == "1000\n"
    os.utime(cache / "key" / "name", (0, 0))
    new = Path(shared_copy("new", "name", 1, content(1)))
    assert new.is_dir() and recent.is_dir() and not old.exists()
    assert (cache / "key" / "name").is_dir()
    using.communicate()
    shared_copy("newer", "name", 1, content(1))
    assert not (cache / "key").exists() and new.is_dir()


def test_the_least_recently_used_copies_make_room(cache, monkeypatch):
    paths = [made_long_ago(cache, f"key-{age}", 1000, age) for age in (300, 100, 200)]
    shared_copy("key-300", "name", 1000, content(1000))  # exists: it is used now
    disk = shutil.disk_usage(cache)
    monkeypatch.setattr(copies, "MOST_OF_DISK", 3500 / disk.total)
    shared_copy("new", "name", 1000, content(1000))
    assert [path.exists() for path in paths] == [True, True, False]


def test_a_copy_that_the_disk_has_no_space_for_is_refused_before_it_begins(cache):
    with pytest.raises(StorageError, match=r"GiB are needed .* XDG_CACHE_HOME"):
        shared_copy("key", "name", 1 << 60, content(1))
    assert not (cache / "key").exists()

"""The copies of remote directories on this machine: one of each, for all processes, and none for ever.

A process that uses a copy holds a shared lock of it until it ends; the one that makes or deletes it holds the
lock alone. Locks are the kernel's, so that those of killed processes are free.
"""

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from boom_ray.errors import StorageError

UNUSED_SECONDS = 30 * 24 * 3600  # after which a copy is deleted
MOST_OF_DISK = 0.5  # what all copies together may take of it
logger = logging.getLogger(__name__)
_used: dict[str, int] = {}  # key -> descriptor of the lock that this process holds


def shared_copy(key: str, name: str, size: int, fill: Callable[[str], None]) -> str:
    """The directory of a copy; made by the first process that asks for it, while the others wait.

    Args:
        key: Identity of the content.
        name: Last component of the path.
        size: Bytes of the content.
        fill: Called with an empty directory, to write the content.

    Raises:
        StorageError: if the disk has not enough free space for it.
    """
    path = os.path.join(_root(), key, name)
    while not _use(key, path):
        with _locked(key, fcntl.LOCK_EX, f"waiting until another process has copied {name}"):
            if not os.path.isdir(path):
                _make(path, size, fill)
    return path


def _root() -> str:
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    return os.path.join(cache, "boom-ray")


def _use(key: str, path: str) -> bool:
    """Take a share of the lock of a copy until this process ends; False if it does not exist."""
    if key in _used and os.path.isdir(path):
        return True
    descriptor = _open(key)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if not os.path.isdir(path):
        os.close(descriptor)
        return False
    os.utime(path)  # the time of its last use
    if _used.setdefault(key, descriptor) != descriptor:  # another thread was faster
        os.close(descriptor)
    return True


def _open(key: str) -> int:
    locks = os.path.join(_root(), "locks")
    os.makedirs(locks, exist_ok=True)
    return os.open(os.path.join(locks, key), os.O_RDWR | os.O_CREAT, 0o666)


@contextmanager
def _locked(key: str, kind: int, message: str) -> Iterator[None]:
    """Hold the lock of a copy; a message tells what is waited for.

    Raises:
        BlockingIOError: if `kind` has LOCK_NB and another process holds the lock.
    """
    descriptor = _open(key)
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if kind & fcntl.LOCK_NB:
                raise
            logger.info(message)
            fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _make(path: str, size: int, fill: Callable[[str], None]) -> None:
    """Make a copy, in one step for its readers. Runs under the lock of its key."""
    parent = os.path.dirname(path)
    shutil.rmtree(parent, ignore_errors=True)  # what killed processes had begun
    _make_room(size)
    os.makedirs(parent)
    partial = tempfile.mkdtemp(dir=parent)
    try:
        fill(partial)
    except BaseException:
        shutil.rmtree(parent, ignore_errors=True)
        raise
    os.rename(partial, path)


def _make_room(size: int) -> None:
    """Delete unused copies that are too old, and as many others, the oldest first, as `size` bytes need."""
    root = _root()
    os.makedirs(root, exist_ok=True)
    copies = sorted(_copies(root), key=lambda copy: copy[1])
    total = sum(num_bytes for _, _, num_bytes in copies)
    for key, last_use, num_bytes in copies:
        disk = shutil.disk_usage(root)
        is_old = time.time() - last_use > UNUSED_SECONDS
        if (is_old or total + size > MOST_OF_DISK * disk.total or disk.free < size) and _delete(root, key):
            total -= num_bytes
    free = shutil.disk_usage(root).free
    if free < size:
        raise StorageError(
            f"{root}: {size / (1 << 30):.1f} GiB are needed for a copy, {free / (1 << 30):.1f} GiB are free. "
            "Free some space, or set XDG_CACHE_HOME to a directory on a larger disk"
        )


def _copies(root: str) -> Iterator[tuple[str, float, int]]:
    """Key, time of the last use and bytes of every copy."""
    for key in os.listdir(root):
        if key == "locks":
            continue
        directory = os.path.join(root, key)
        files = [os.path.join(path, name) for path, _, names in os.walk(directory) for name in names]
        try:
            last_use = max(os.stat(entry.path).st_mtime for entry in os.scandir(directory))
            yield key, last_use, sum(os.lstat(file).st_size for file in files)
        except (OSError, ValueError):  # it is being made or deleted
            continue


def _delete(root: str, key: str) -> bool:
    """Delete a copy unless a process uses it."""
    try:
        with _locked(key, fcntl.LOCK_EX | fcntl.LOCK_NB, ""):
            shutil.rmtree(os.path.join(root, key), ignore_errors=True)
    except BlockingIOError:
        return False
    return True

"""Checkpoints of one bag: complete, or invisible.

Every rank copies its own files to `step-…/` while training goes on, and then writes a manifest, which lists
them with their sizes. A checkpoint is complete when all ranks have written theirs and every file exists. Any
other is never resumed from: DeepSpeed alone would start cold from such a directory, with a warning.
"""

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from boom_ray import storage
from boom_ray.errors import BoomError
from boom_ray.runtime import scratch

FIRST = re.compile(r"rank-0-of-(\d+)\.json")  # does not match the temporary name of a file being written
KEPT = 2  # the older one is used if the newer is damaged


class Saver:
    """Saves the files of one rank.

    Args:
        root: URI of the checkpoints of the bag.
        attempt: Distinguishes this start of the bag from earlier ones, whose files must not mix.
    """

    def __init__(self, root: str, attempt: str, rank: int, num_ranks: int) -> None:
        self.root, self.attempt, self.rank, self.num_ranks = root, attempt, rank, num_ranks
        self._thread = ThreadPoolExecutor(1)
        self._upload: Future[None] | None = None

    def directory(self) -> str:
        """A local directory for the next checkpoint, once the previous one is stored."""
        self.wait()
        return scratch.directory("checkpoint")

    def store(self, local: str, step: int, state: dict[str, Any]) -> None:
        """Store the files of `local` in the background, with the training state outside of DeepSpeed."""
        uri = storage.join(self.root, f"step-{step:08d}-{self.attempt}")
        self._upload = self._thread.submit(self._store, local, uri, state)

    def wait(self) -> None:
        """Wait until the last checkpoint is stored.

        Raises:
            OSError: if storing failed; another attempt may succeed.
        """
        if self._upload is not None:
            try:
                self._upload.result()
            except BoomError as error:
                raise OSError(str(error)) from error
            self._upload = None

    def _store(self, local: str, uri: str, state: dict[str, Any]) -> None:
        try:
            sizes = {name: info.size for name, info in storage.list_files(local).items()}
            storage.copy_tree(local, uri)
            content = json.dumps({"state": state, "files": sizes}).encode()
            storage.write_bytes(storage.join(uri, _manifest_of(self.rank, self.num_ranks)), content)
        finally:
            shutil.rmtree(local)
        if self.rank == 0:
            prune(self.root)


def find(root: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """URI and state of each checkpoint, newest first; the state is None where it is incomplete."""
    for name in sorted(storage.list_names(root), reverse=True):
        uri = storage.join(root, name)
        yield uri, _complete(uri)


def newest(root: str) -> tuple[str, dict[str, Any]] | None:
    """URI and state of the newest complete checkpoint, or None."""
    for uri, state in find(root):
        if state is not None:
            return uri, state
        print(f"{uri}: incomplete, not used", flush=True)
    return None


def prune(root: str) -> None:
    """Delete everything older than the newest complete checkpoints; newer ones may still be incomplete."""
    complete = 0
    for name in sorted(storage.list_names(root), reverse=True):
        uri = storage.join(root, name)
        if complete >= KEPT:
            storage.delete_tree(uri)
        elif _complete(uri) is not None:
            complete += 1


def _manifest_of(rank: int, num_ranks: int) -> str:
    return f"rank-{rank}-of-{num_ranks}.json"


def _complete(uri: str) -> dict[str, Any] | None:
    """The state of a complete checkpoint, else None."""
    present = storage.list_files(uri)
    first = next(filter(None, (FIRST.fullmatch(name) for name in present)), None)
    if first is None:
        return None
    state: dict[str, Any] = {}
    num_ranks = int(first[1])
    for rank in reversed(range(num_ranks)):
        name = _manifest_of(rank, num_ranks)
        if name not in present:
            return None
        manifest = json.loads(storage.read_bytes(storage.join(uri, name)))
        sizes = manifest["files"].items()
        if any(file not in present or present[file].size != size for file, size in sizes):
            return None
        state = manifest["state"]
    return state

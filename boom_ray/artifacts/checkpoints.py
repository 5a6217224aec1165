"""Checkpoints of one bag: complete, or invisible.

Every rank writes its own files to `step-…/` while training goes on. When all ranks have, the first one seals
the checkpoint: it writes the manifest, which lists all files with their sizes and hashes. A directory without
a manifest, or whose files are not those of its manifest, is never resumed from.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import xxhash
from pydantic import BaseModel, ConfigDict

from boom_ray import storage
from boom_ray.artifacts.record import FileEntry, fingerprint, hash_file
from boom_ray.errors import BoomError

MANIFEST = "checkpoint.json"
KEPT = 2  # the older one is used if the newer is damaged
Pieces = Iterable[bytes | memoryview]  # the content of one file, in order
Entries = dict[str, FileEntry]
logger = logging.getLogger(__name__)


class Manifest(BaseModel):
    """What seals a checkpoint.

    Attributes:
        state: The training state, apart from weights and moments.
        files: Size and hash of every file, by name.
        fingerprint: Hash of the two above.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: dict[str, Any]
    files: Entries
    fingerprint: str

    @classmethod
    def of(cls, state: dict[str, Any], files: Entries) -> "Manifest":
        """The manifest of a state and its files."""
        listed = {name: entry.model_dump() for name, entry in files.items()}
        return cls(state=state, files=files, fingerprint=fingerprint([state, listed]))


class Saver:
    """Saves the files of one rank.

    Args:
        root: URI of the checkpoints of the bag.
        attempt: Distinguishes this start of the bag from earlier ones, whose files must not mix.
        gather: Returns the values that all ranks call it with, in a thread of its own while training goes on;
            None is a rank that could not store its files.
    """

    def __init__(
        self,
        root: str,
        attempt: str,
        rank: int,
        gather: Callable[[Entries | None], Sequence[Entries | None]],
    ) -> None:
        self.root, self.attempt, self.rank, self.gather = root, attempt, rank, gather
        self._thread = ThreadPoolExecutor(1)
        self._upload: Future[None] | None = None

    def store(self, files: Mapping[str, Pieces], step: int, state: dict[str, Any]) -> None:
        """Store files of this rank in the background, once those of the last checkpoint are stored.

        Args:
            files: Content by name; names of different ranks differ.
            state: The training state, equal on all ranks.

        Raises:
            OSError: as `wait` does.
        """
        self.wait()
        uri = storage.join(self.root, f"step-{step:08d}-{self.attempt}")
        self._upload = self._thread.submit(self._store, files, uri, state)

    def wait(self) -> None:
        """Wait until this rank has stored its files of the last checkpoint, and the first rank has sealed it.

        Raises:
            OSError: if storing failed; another attempt may succeed.
        """
        if self._upload is not None:
            upload, self._upload = self._upload, None
            try:
                upload.result()
            except BoomError as error:
                raise OSError(str(error)) from error

    def _store(self, files: Mapping[str, Pieces], uri: str, state: dict[str, Any]) -> None:
        own: Entries | None = None
        try:
            own = {name: _write(storage.join(uri, name), pieces) for name, pieces in files.items()}
        finally:
            everyone = self.gather(own)  # also after a failure: no rank waits for this one in vain
        if self.rank == 0:
            self._seal(uri, state, everyone)

    def _seal(self, uri: str, state: dict[str, Any], everyone: Sequence[Entries | None]) -> None:
        missing = [str(rank) for rank, entries in enumerate(everyone) if entries is None]
        if missing:
            raise OSError(f"{uri}: rank {', '.join(missing)} could not store its files")
        files = {name: entry for entries in everyone for name, entry in (entries or {}).items()}
        content = json.dumps(Manifest.of(state, files).model_dump()).encode()
        storage.write_bytes(storage.join(uri, MANIFEST), content)
        prune(self.root)


def _write(uri: str, pieces: Pieces) -> FileEntry:
    hasher, size = xxhash.xxh3_128(), 0
    with storage.explained(uri), storage.open_output(uri) as file:
        for piece in pieces:
            size += file.write(piece)
            hasher.update(piece)
    return FileEntry(size=size, xxh3_128=hasher.hexdigest())


def find(root: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """URI and state of each checkpoint, newest first; the state is None where it is incomplete."""
    for uri in _newest_first(root):
        manifest, _ = _inspect(uri)
        yield uri, None if manifest is None else manifest.state


def complete(root: str) -> Iterator[tuple[str, Manifest]]:
    """URI and manifest of each complete checkpoint, newest first; the log names what is wrong with others."""
    for uri in _newest_first(root):
        manifest, problem = _inspect(uri)
        if manifest is not None:
            yield uri, manifest
        else:
            logger.warning("%s: incomplete, not used: %s", uri, problem)


def newest(root: str) -> tuple[str, dict[str, Any]] | None:
    """URI and state of the newest complete checkpoint, or None."""
    return next(((uri, manifest.state) for uri, manifest in complete(root)), None)


def newest_step(root: str) -> int:
    """Step of the newest complete checkpoint, 0 if there is none."""
    return next((state["step"] for _, state in find(root) if state), 0)


def damage(uri: str, files: Mapping[str, FileEntry]) -> list[str]:
    """The files of a checkpoint whose content is not what its manifest records.

    Args:
        files: Those to read, of its manifest.
    """
    return [
        f"{name}: its content differs from the recorded hash"
        for name, entry in files.items()
        if hash_file(storage.join(uri, name)) != entry
    ]


def prune(root: str) -> None:
    """Delete everything older than the newest complete checkpoints; newer ones may still be incomplete."""
    num_complete = 0
    for uri in list(_newest_first(root)):
        if num_complete >= KEPT:
            storage.delete_tree(uri)
        elif _inspect(uri)[0] is not None:
            num_complete += 1


def _newest_first(root: str) -> Iterator[str]:
    return (storage.join(root, name) for name in sorted(storage.list_names(root), reverse=True))


def _inspect(uri: str) -> tuple[Manifest | None, str]:
    """The manifest of a complete checkpoint; or None, and what is wrong with it. Contents are not read."""
    present = storage.list_files(uri)
    if MANIFEST not in present:
        return None, f"it has no {MANIFEST}"
    try:
        manifest = Manifest.model_validate(json.loads(storage.read_bytes(storage.join(uri, MANIFEST))))
    except BoomError:
        raise
    except (ValueError, RecursionError):
        return None, f"{MANIFEST} is damaged"
    if manifest.fingerprint != Manifest.of(manifest.state, manifest.files).fingerprint:
        return None, f"{MANIFEST} is damaged"
    for name, entry in manifest.files.items():
        if name not in present:
            return None, f"{name} is missing"
        if present[name].size != entry.size:
            return None, f"{name} has {present[name].size} bytes, recorded are {entry.size}"
    return manifest, ""

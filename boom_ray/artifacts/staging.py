"""Publishing a directory as an artifact in one step, whichever process dies meanwhile.

A producer fills a `Stage`, a sibling of the target that readers ignore, and commits it. A local stage is
renamed to its target. An object store has no rename: there the files are written below the target, beside a
marker that names the process that fills the prefix, and the record is written last.
"""

import datetime
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from boom_ray import artifacts, storage
from boom_ray.artifacts.record import MARKER, FileEntry, R, TensorEntry
from boom_ray.artifacts.record_file import content_of, find_record
from boom_ray.errors import ConflictError, StorageError
from boom_ray.runtime import processes, scratch


class Stage:
    """A directory that becomes an artifact when it is committed.

    Attributes:
        uri: Directory that any process of the cluster can write to; readers ignore it.
        local: A local directory whose files become part of the artifact; equal to `uri` for local targets.
        entries: Hashes that a writer has computed; `commit` computes the others.
        tensors: Tensor hashes that a writer has computed; likewise.
    """

    def __init__(self, target: str, identity: str | None = None) -> None:
        self.target, self.identity = target, identity
        self.claim = identity or f"{processes.own_name()}-{uuid.uuid4().hex[:8]}"
        self.entries: dict[str, FileEntry] = {}
        self.tensors: dict[str, TensorEntry] = {}
        if storage.is_local(target):
            parent, name = os.path.split(target)
            os.makedirs(parent, exist_ok=True)
            _sweep(parent, name)
            stage = f".{name}.unfinished-{identity}" if identity else f".{name}.stage-{self.claim}"
            self.uri = self.local = os.path.join(parent, stage)
            os.makedirs(self.local, exist_ok=bool(identity))
        else:
            self.uri, self.local = target, scratch.directory("stage")
            _claim_prefix(target, self.claim, resumable=bool(identity))

    def commit(self, record: R) -> R:
        """Hash the files that are not hashed yet, and make the directory visible at its target in one step.

        Returns:
            The record as written.

        Raises:
            ConflictError: if another artifact took the target in the meantime; that one stays.
        """
        self._hash()
        created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        record = record.model_copy(
            update={
                "created": created,
                "job": record.job or artifacts.submission_id(),
                "libraries": artifacts.libraries(),
                "files": dict(sorted(self.entries.items())),
                "tensors": dict(sorted(self.tensors.items())),
            }
        )
        refuse_existing(self.target)
        content = content_of(
            record.FILE, record.model_dump_json(indent=1).encode(), self.uri, list(record.files)
        )
        if self.local == self.uri:
            storage.write_bytes(storage.join(self.local, record.FILE), content)
            self._rename()
        else:
            self._refuse_taken_over()
            storage.copy_tree(self.local, self.uri)
            self._check_upload()
            self._refuse_taken_over()
            if not storage.create(storage.join(self.target, record.FILE), content):
                raise _exists(self.target)
            storage.delete_file(storage.join(self.target, MARKER))
        return record

    def flush(self) -> str:
        """Copy everything staged so far to `uri`, where other processes can read it before it is published.

        Returns:
            The digest of the artifact, if only files about its making (`ACCOUNTS`) are added later.
        """
        self._hash()
        if self.local != self.uri:
            self._refuse_taken_over()
            storage.copy_tree(self.local, self.uri)
        return artifacts.digest_of(self.entries)

    def _hash(self) -> None:
        names = [name for name in storage.list_files(self.local) if name not in self.entries]
        for name in names:
            self.entries[name] = artifacts.hash_file(storage.join(self.local, name))
            if name.endswith(".safetensors"):
                self.tensors.update(artifacts.hash_tensors(self.local, name))

    def _rename(self) -> None:
        for name in self.entries:
            path = os.path.join(self.local, name)
            os.chmod(path, 0o644)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        try:
            os.rename(self.local, self.target)
        except OSError as error:
            refuse_existing(self.target)
            raise StorageError(
                f"{self.target}: cannot be published: {error.strerror}. Is it in use?"
            ) from error

    def _check_upload(self) -> None:
        present = storage.list_files(self.uri)
        for name, entry in self.entries.items():
            if name not in present or present[name].size != entry.size:
                raise StorageError(
                    f"{storage.join(self.uri, name)}: not stored completely. Run the command again"
                )

    def _refuse_taken_over(self) -> None:
        """Raise ConflictError if another process fills the prefix now.

        A process on a node that was cut off is presumed dead, and its work is given to another process. When
        the node comes back, it must not overwrite what the other process wrote.
        """
        refuse_existing(self.target)
        if _claimed_by(self.target) != self.claim:
            raise ConflictError(f"{self.target}: another process has taken it over. Run the command again")

    def discard(self) -> None:
        """Delete the staged files, unless they were committed or another process can resume from them."""
        if self.identity is None or self.local != self.uri:
            shutil.rmtree(self.local, ignore_errors=True)
        if self.identity is None and self.local != self.uri and _claimed_by(self.target) == self.claim:
            _give_up_prefix(self.target)


def refuse_existing(target: str) -> None:
    """Raise ConflictError if an artifact is published at `target`, or a local directory there holds files."""
    if find_record(target):
        raise _exists(target)
    if (
        storage.is_local(target)
        and os.path.exists(target)
        and not (os.path.isdir(target) and not os.listdir(target))
    ):
        raise ConflictError(f"{target}: exists and is not an artifact. Give another path")


def _exists(target: str) -> ConflictError:
    return ConflictError(f"{target}: exists already. Give another path, or delete it first")


def _claimed_by(target: str) -> str | None:
    """The claim of the process that fills a prefix of an object store."""
    marker = storage.join(target, MARKER)
    return storage.read_bytes(marker).decode() if storage.is_file(marker) else None


def _claim_prefix(target: str, claim: str, resumable: bool) -> None:
    """Mark a prefix of an object store as being filled; files of a producer that died are deleted.

    Args:
        claim: The process that fills it; or the identity of the output, if a later process can resume from
            the files that are stored.

    Raises:
        ConflictError: if the prefix holds something else, or a process of this machine is filling it.
    """
    owner = _claimed_by(target)
    if owner == claim:
        return
    if owner is None and storage.list_files(target):
        raise ConflictError(f"{target}: exists and is not an artifact. Give another path")
    if owner is not None:
        process_name, _, _ = owner.rpartition("-")
        if resumable or not processes.is_name(process_name):
            raise ConflictError(
                f"{target}: holds the unfinished output of something else. Give another path, or delete it"
            )
        if processes.runs_here(process_name):
            raise ConflictError(f"{target}: {process_name} is filling it. Wait for it, or give another path")
        _give_up_prefix(target)
    if not storage.create(storage.join(target, MARKER), claim.encode()):
        raise ConflictError(f"{target}: another process is filling it. Wait for it, or give another path")


def _give_up_prefix(target: str) -> None:
    """Delete all files below a prefix, the claim last: files without a claim are refused, not replaced."""
    for name in storage.list_files(target):
        if name != MARKER:
            storage.delete_file(storage.join(target, name))
    storage.delete_tree(target)


def _sweep(parent: str, name: str) -> None:
    """Delete sibling stages of a target whose processes on this machine have ended."""
    prefix = f".{name}.stage-"
    for entry in os.listdir(parent):
        owner, _, _ = entry.removeprefix(prefix).rpartition("-")
        if entry.startswith(prefix) and processes.has_ended(owner):
            shutil.rmtree(os.path.join(parent, entry), ignore_errors=True)


@contextmanager
def _full_disk_explained(target: str) -> Iterator[None]:
    """Turn the error of a full disk, raised anywhere while an artifact is written, into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        with storage.explained(target):
            raise


@contextmanager
def staged(target: str) -> Iterator[Stage]:
    """A stage for `target` that leaves no files behind, however the block ends.

    Raises:
        ConflictError: at once, if `target` is taken.
        StorageError: if its disk is full.
    """
    refuse_existing(target)
    stage = Stage(target)
    try:
        with _full_disk_explained(target):
            yield stage
    finally:
        stage.discard()


@contextmanager
def resumable(target: str, identity: str) -> Iterator[Stage]:
    """A stage that is kept when the block fails, so that a later process with the same output resumes it.

    Args:
        identity: Of the output; its files must be functions of it.

    Raises:
        ConflictError: at once, if `target` is taken, or holds the unfinished output of another identity.
        StorageError: if its disk is full.
    """
    refuse_existing(target)
    stage = Stage(target, identity)
    try:
        with _full_disk_explained(target):
            yield stage
    finally:
        stage.discard()

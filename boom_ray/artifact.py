"""The record that makes a directory an artifact: lineage and hashes, written last.

A directory without `artifact.json` does not exist for any reader. A producer fills a `Stage`, a sibling of
the target that no reader looks at, and commits it: local stages are renamed into place in one step; on an
object store, which has no rename, the files are written under the target and the record follows them.
"""

import datetime
import errno
import importlib.metadata
import importlib.util
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from boom_ray import __version__, process, scratch, storage
from boom_ray.errors import BoomError

RECORD = "artifact.json"
TELLING = ("README.md", "metrics.jsonl", "distances.json")  # the card, the journal, and the merge's account
MARKER = ".stage"  # on an object store: this prefix is being filled, by the process named in it
Kind = Literal["corpus", "bags", "model", "embeddings"]
READ_BYTES = 8 << 20
LIBRARIES = ("ray", "torch", "transformers", "deepspeed", "safetensors")


class FileEntry(BaseModel):
    """Size in bytes and content hash of one file."""

    size: int
    xxh3_128: str


class TensorEntry(BaseModel):
    """What one tensor of a model holds; `dtype` is a safetensors name (`BF16`, `F32`)."""

    dtype: str
    shape: list[int]
    xxh3_128: str


class Parent(BaseModel):
    """An artifact this one was made from."""

    name: str
    version: str
    digest: str


class Record(BaseModel):
    """The content of `artifact.json`.

    `times` are start and end of what made it, in seconds since 1970; `self_test` is what a model made of a
    sentence (see `model.self_test`); `job` is the Ray job that made it, with `libraries` of these versions.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    name: str
    version: str
    fingerprint: str
    config: dict[str, Any] = {}
    seed: int | None = None
    parents: list[Parent] = []
    metrics: dict[str, Any] = {}
    times: dict[str, tuple[float, float]] = {}
    self_test: list[float] = []
    created: str = ""
    job: str | None = None
    code_version: str = __version__
    libraries: dict[str, str] = {}
    files: dict[str, FileEntry] = {}
    tensors: dict[str, TensorEntry] = {}

    @property
    def digest(self) -> str:
        """Identity of the content: a hash over the hashes of all files but those that tell of the making."""
        return _digest(self.files)

    def as_parent(self) -> Parent:
        """This artifact as a child's record names it."""
        return Parent(name=self.name, version=self.version, digest=self.digest)


def _libraries() -> dict[str, str]:
    """Versions of those of `LIBRARIES` that are installed."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES if importlib.util.find_spec(name)}


def _digest(files: dict[str, FileEntry]) -> str:
    return fingerprint({name: e.xxh3_128 for name, e in sorted(files.items()) if name not in TELLING})


def submission_id() -> str | None:
    """The id `ray job submit` gave the job whose driver this process is; None in any other process."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return config.get("metadata", {}).get("job_submission_id")


def fingerprint(content: Any) -> str:
    """xxh3-128 of a JSON-able value in canonical form."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return xxhash.xxh3_128_hexdigest(canonical.encode())


def read_record(uri: str) -> Record | None:
    """The record of the artifact at `uri`, or None if there is no complete artifact.

    Raises:
        BoomError: if `artifact.json` is there but is not a record.
    """
    location = storage.join(uri, RECORD)
    if not storage.is_file(location):
        return None
    try:
        return Record.model_validate_json(storage.read_bytes(location))
    except ValidationError as error:
        raise BoomError(f"{location}: not an artifact record: {error.errors()[0]['msg']}") from error


def hash_file(uri: str) -> FileEntry:
    """Size and xxh3-128 of one file, read in pieces of 8 MiB."""
    hasher = xxhash.xxh3_128()
    with storage.open_input(uri) as file:
        size = file.size()
        for offset in range(0, size, READ_BYTES):
            hasher.update(file.read_at(min(READ_BYTES, size - offset), offset))
    return FileEntry(size=size, xxh3_128=hasher.hexdigest())


def hash_tree(uri: str) -> str:
    """Identity of all files below a directory."""
    return fingerprint(
        {name: hash_file(storage.join(uri, name)).xxh3_128 for name in storage.list_files(uri)}
    )


def hash_tensors(uri: str, name: str) -> dict[str, TensorEntry]:
    """The entries of all tensors of one safetensors file."""
    entries = {}
    with storage.open_input(storage.join(uri, name)) as file:
        header_bytes = int.from_bytes(file.read_at(8, 0), "little")
        header = json.loads(file.read_at(header_bytes, 8))
        header.pop("__metadata__", None)
        for tensor, entry in header.items():
            start, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
            hasher = xxhash.xxh3_128()
            for offset in range(start, end, READ_BYTES):
                hasher.update(file.read_at(min(READ_BYTES, end - offset), offset))
            entries[tensor] = TensorEntry(
                dtype=entry["dtype"], shape=entry["shape"], xxh3_128=hasher.hexdigest()
            )
    return entries


def verify(uri: str) -> Record:
    """Check an artifact against its record: every file there, none too many, sizes and hashes equal.

    Raises:
        BoomError: naming every file that differs, or the missing record.
    """
    record = read_record(uri)
    if record is None:
        raise BoomError(
            f"{uri}: not an artifact: it has no {RECORD}. It was never finished, or is something else"
        )
    present = {name: info for name, info in storage.list_files(uri).items() if name not in (RECORD, MARKER)}
    problems = [f"{name}: missing" for name in record.files.keys() - present.keys()]
    problems += [f"{name}: not in the record" for name in present.keys() - record.files.keys()]
    for name in sorted(record.files.keys() & present.keys()):
        if present[name].size != record.files[name].size:
            problems.append(f"{name}: {present[name].size} bytes, recorded {record.files[name].size}")
        elif hash_file(storage.join(uri, name)) != record.files[name]:
            problems.append(
                f"{name}: its content differs from the recorded hash{_which_tensors(uri, name, record)}"
            )
    if problems:
        raise BoomError.of(sorted(problems), f"{uri}: damaged. Publish it again, or restore these files:")
    return record


def _which_tensors(uri: str, name: str, record: Record) -> str:
    if not name.endswith(".safetensors"):
        return ""
    try:
        found = hash_tensors(uri, name)
    except (ValueError, KeyError, OSError):
        return " (its header)"
    damaged = [tensor for tensor, entry in found.items() if record.tensors.get(tensor) != entry]
    return f" (tensor {', '.join(damaged)})" if damaged else ""


class Stage:
    """A directory on its way to becoming an artifact.

    Attributes:
        uri: Where files can be written by any process of the cluster. No reader looks there.
        local: A local directory whose files become part of the artifact; equal to `uri` for local targets.
        entries: Hashes already known to a writer; `commit` computes the others.
        tensors: Tensor hashes already known to a writer; likewise.
    """

    def __init__(self, target: str, identity: str | None = None) -> None:
        self.target, self.identity = target, identity
        self.claim = identity or f"{process.own_name()}-{uuid.uuid4().hex[:8]}"
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

    def commit(self, record: Record) -> Record:
        """Hash what is not hashed yet, and make the directory visible under its target in one step.

        Returns:
            The record as written.

        Raises:
            BoomError: if another artifact took the target in the meantime; that one stays.
        """
        self._hash()
        created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        record = record.model_copy(
            update={
                "created": created,
                "job": record.job or submission_id(),
                "libraries": _libraries(),
                "files": dict(sorted(self.entries.items())),
                "tensors": dict(sorted(self.tensors.items())),
            }
        )
        refuse_existing(self.target)
        content = record.model_dump_json(indent=1).encode()
        if self.local == self.uri:
            storage.write_bytes(storage.join(self.local, RECORD), content)
            self._rename()
        else:
            self._refuse_taken_over()
            storage.copy_tree(self.local, self.uri)
            self._check_upload()
            self._refuse_taken_over()
            storage.write_bytes(storage.join(self.target, RECORD), content)
            storage.delete_file(storage.join(self.target, MARKER))
        return record

    def settle(self) -> str:
        """Put everything staged so far where `uri` says, for others to read before it is published.

        Returns:
            The digest of the artifact, if all that is still to come are files that tell of the making.
        """
        self._hash()
        if self.local != self.uri:
            self._refuse_taken_over()
            storage.copy_tree(self.local, self.uri)
        return _digest(self.entries)

    def _hash(self) -> None:
        names = [name for name in storage.list_files(self.local) if name not in self.entries]
        for name in names:
            self.entries[name] = hash_file(storage.join(self.local, name))
            if name.endswith(".safetensors"):
                self.tensors.update(hash_tensors(self.local, name))

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
            raise BoomError(f"{self.target}: cannot be published: {error.strerror}. Is it in use?") from error

    def _check_upload(self) -> None:
        present = storage.list_files(self.uri)
        for name, entry in self.entries.items():
            if name not in present or present[name].size != entry.size:
                raise BoomError(
                    f"{storage.join(self.uri, name)}: not stored completely. Run the command again"
                )

    def _refuse_taken_over(self) -> None:
        """Raise BoomError if another process fills the prefix now.

        A process on a node that was cut off is taken for dead, and its work is given to another. When the
        node comes back it must not write over what the other has made.
        """
        refuse_existing(self.target)
        if _claimed_by(self.target) != self.claim:
            raise BoomError(f"{self.target}: another process has taken it over. Run the command again")

    def discard(self) -> None:
        """Delete what was staged, unless it was committed or another process can go on with it."""
        if self.identity is None or self.local != self.uri:
            shutil.rmtree(self.local, ignore_errors=True)
        if self.identity is None and self.local != self.uri and _claimed_by(self.target) == self.claim:
            _give_up_prefix(self.target)


def refuse_existing(target: str) -> None:
    """Raise BoomError if anything is published at `target`, or a local directory there holds files."""
    if storage.is_file(storage.join(target, RECORD)):
        raise BoomError(f"{target}: exists already. Give another path, or delete it first")
    if (
        storage.is_local(target)
        and os.path.exists(target)
        and not (os.path.isdir(target) and not os.listdir(target))
    ):
        raise BoomError(f"{target}: is in the way and is not an artifact. Give another path")


def _claimed_by(target: str) -> str | None:
    """Who fills a prefix of an object store."""
    marker = storage.join(target, MARKER)
    return storage.read_bytes(marker).decode() if storage.is_file(marker) else None


def _claim_prefix(target: str, claim: str, resumable: bool) -> None:
    """Mark a prefix of an object store as being filled; what a producer that died left there is deleted.

    Args:
        claim: The process that fills it; or what is made, if a later process can go on with it: then what is
            there of it is kept.

    Raises:
        BoomError: if the prefix holds something else, or a process of this machine is filling it.
    """
    owner = _claimed_by(target)
    if owner == claim:
        return
    if owner is None and storage.list_files(target):
        raise BoomError(f"{target}: is in the way and is not an artifact. Give another path")
    if owner is not None:
        process_name, _, _ = owner.rpartition("-")
        if resumable or not process.is_name(process_name):
            raise BoomError(
                f"{target}: holds the unfinished output of something else. Give another path, or delete it"
            )
        if process.runs_here(process_name):
            raise BoomError(f"{target}: {process_name} is filling it. Wait for it, or give another path")
        _give_up_prefix(target)
    storage.write_bytes(storage.join(target, MARKER), claim.encode())


def _give_up_prefix(target: str) -> None:
    """Delete all files below a prefix; last the claim, without which they would be nobody's."""
    for name in storage.list_files(target):
        if name != MARKER:
            storage.delete_file(storage.join(target, name))
    storage.delete_tree(target)


def _sweep(parent: str, name: str) -> None:
    """Delete stages left beside a target by processes of this machine that no longer run."""
    prefix = f".{name}.stage-"
    for entry in os.listdir(parent):
        owner, _, _ = entry.removeprefix(prefix).rpartition("-")
        if entry.startswith(prefix) and process.has_ended(owner):
            shutil.rmtree(os.path.join(parent, entry), ignore_errors=True)


@contextmanager
def _disk_that_fills(target: str) -> Iterator[None]:
    """Turn a full disk, wherever the writing of an artifact met it, into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        with storage.explained(target):
            raise


@contextmanager
def staged(target: str) -> Iterator[Stage]:
    """A stage for `target` that leaves nothing behind, however the block ends.

    Raises:
        BoomError: at once, if `target` is taken; or if its disk is full.
    """
    refuse_existing(target)
    stage = Stage(target)
    try:
        with _disk_that_fills(target):
            yield stage
    finally:
        stage.discard()


@contextmanager
def resumable(target: str, identity: str) -> Iterator[Stage]:
    """A stage that is kept when the block fails, for a later process that makes the same to go on with.

    Args:
        identity: Of what is made; its files must be functions of it.

    Raises:
        BoomError: at once, if `target` is taken, or holds the unfinished output of something else; or if its
            disk is full.
    """
    refuse_existing(target)
    stage = Stage(target, identity)
    try:
        with _disk_that_fills(target):
            yield stage
    finally:
        stage.discard()

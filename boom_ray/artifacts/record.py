"""The record that makes a directory an artifact: lineage and hashes, written last.

A directory without `artifact.json` does not exist for any reader (`staging` is how it comes there).
"""

import importlib.metadata
import importlib.util
import json
import os
from typing import Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from boom_ray import __version__, storage
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
        """Identity of the content."""
        return digest_of(self.files)

    def as_parent(self) -> Parent:
        """This artifact as a child's record names it."""
        return Parent(name=self.name, version=self.version, digest=self.digest)


def libraries() -> dict[str, str]:
    """Versions of those of `LIBRARIES` that are installed."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES if importlib.util.find_spec(name)}


def digest_of(files: dict[str, FileEntry]) -> str:
    """A hash over the hashes of all files but those that tell of the making."""
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

"""The record that makes a directory an artifact: lineage and hashes, written last.

A directory without a record (`record_file`) does not exist for any reader; `staging` publishes one.
"""

import importlib.metadata
import importlib.util
import json
import os
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import xxhash
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from boom_ray import __version__, storage
from boom_ray.artifacts.contents import (
    BagsConfig,
    CoreConfig,
    CorpusConfig,
    EmbeddingsConfig,
    EmbeddingsMetrics,
    ModelConfig,
    ModelMetrics,
)
from boom_ray.artifacts.record_file import PARQUET_RECORD, RECORD, find_record, read_json
from boom_ray.errors import InputError, NotFoundError, StorageError

CARD, METRICS_LOG, DISTANCES = "README.md", "metrics.jsonl", "distances.json"
ACCOUNTS = (CARD, METRICS_LOG, DISTANCES)  # files about the making of a model, which its digest leaves out
MARKER = ".stage"  # on an object store: the process named in it is filling this prefix
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
    """The fields of a record that every kind of artifact has.

    Attributes:
        FILE: Name of the record's file.
        kind: Decides the types of `config` and `metrics` (`boom_ray.artifacts.contents`).
        fingerprint: Identity of the inputs and settings.
        times: Start and end of each stage, in seconds since 1970.
        self_test: The leading numbers of the vector of a fixed sentence (`boom_ray.model.self_test`).
        created: UTC, ISO 8601.
        job: Submission id of the Ray job that made it.
        libraries: Versions it was made with.
        files: Size and hash by path.
        tensors: Entries by name.
    """

    model_config = ConfigDict(extra="forbid")
    FILE: ClassVar[str] = RECORD

    kind: str
    name: str
    version: str
    fingerprint: str
    config: Any = None
    seed: int | None = None
    parents: list[Parent] = []
    metrics: Any = None
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
        """This artifact as the record of a child names it."""
        return Parent(name=self.name, version=self.version, digest=self.digest)


class CorpusRecord(Record):
    """A checked corpus."""

    kind: Literal["corpus"] = "corpus"
    config: CorpusConfig


class CoreRecord(Record):
    """A core sample of all tasks behind a version."""

    kind: Literal["core"] = "core"
    config: CoreConfig


class BagsRecord(Record):
    """The manifests of all bags."""

    kind: Literal["bags"] = "bags"
    config: BagsConfig


class ModelRecord(Record):
    """A model: of a bag, merged, or the child of an update."""

    kind: Literal["model"] = "model"
    config: ModelConfig = ModelConfig()
    metrics: ModelMetrics = ModelMetrics()


class EmbeddingsRecord(Record):
    """Embeddings of a source."""

    FILE: ClassVar[str] = PARQUET_RECORD

    kind: Literal["embeddings"] = "embeddings"
    config: EmbeddingsConfig
    metrics: EmbeddingsMetrics | None = None


AnyRecord = CorpusRecord | CoreRecord | BagsRecord | ModelRecord | EmbeddingsRecord
R = TypeVar("R", bound=Record)
_ANY: TypeAdapter[AnyRecord] = TypeAdapter(Annotated[AnyRecord, Field(discriminator="kind")])


def libraries() -> dict[str, str]:
    """Versions of those of `LIBRARIES` that are installed."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES if importlib.util.find_spec(name)}


def digest_of(files: dict[str, FileEntry]) -> str:
    """A hash over the hashes of all files except `ACCOUNTS`."""
    return fingerprint({name: e.xxh3_128 for name, e in sorted(files.items()) if name not in ACCOUNTS})


def submission_id() -> str | None:
    """The id `ray job submit` gave the job whose driver this process is; None in any other process."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return config.get("metadata", {}).get("job_submission_id")


def fingerprint(content: Any) -> str:
    """xxh3-128 of a JSON-able value in canonical form."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return xxhash.xxh3_128_hexdigest(canonical.encode())


def read_record(uri: str) -> AnyRecord | None:
    """The record of the artifact at `uri`, or None if there is no complete artifact.

    Raises:
        StorageError: if the record is damaged, or not one of this version of boom-ray.
    """
    location = find_record(uri)
    if location is None:
        return None
    try:
        return _ANY.validate_json(read_json(location))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StorageError(f"{location}: not an artifact record: {where}: {first['msg']}") from error


def find(uri: str, kind: type[R]) -> R | None:
    """The record of an artifact of one kind, or None if there is no complete artifact.

    Raises:
        InputError: if the artifact is of another kind.
    """
    record = read_record(uri)
    if record is not None and not isinstance(record, kind):
        raise InputError(f"{uri}: is a {record.kind} artifact; expected {kind.model_fields['kind'].default}")
    return record


def read(uri: str, kind: type[R]) -> R:
    """The record of an artifact of one kind.

    Raises:
        NotFoundError: if there is no complete artifact.
        InputError: if the artifact is of another kind.
    """
    record = find(uri, kind)
    if record is None:
        raise NotFoundError(
            f"{uri}: not an artifact: it has no {kind.FILE}. Check the path, or finish its run"
        )
    return record


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


def verify(uri: str) -> AnyRecord:
    """Check an artifact against its record: no file missing, none added, sizes and hashes equal.

    Raises:
        NotFoundError: if there is no record.
        StorageError: naming every file that differs.
    """
    record = read_record(uri)
    if record is None:
        raise NotFoundError(
            f"{uri}: not an artifact: it has no {RECORD}. It was never finished, or is something else"
        )
    own = (record.FILE, MARKER)
    present = {name: info for name, info in storage.list_files(uri).items() if name not in own}
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
        raise StorageError.of(sorted(problems), f"{uri}: damaged. Publish it again, or restore these files:")
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

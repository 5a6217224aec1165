"""Batch embedding: texts in an object store become vectors in an object store, through Ray Data.

The texts are read twice. The first pass reads all of them and loads no model: it counts, checks and
fingerprints, so that a null in the last file is an error after seconds and not after hours. The second
encodes them and writes the vectors. Processes that read and write need no torch, so what needs it is
imported where it is used.
"""

import itertools
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import xxhash
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError, RayTaskError

from boom_ray import artifact, storage
from boom_ray.artifact import Record, Stage
from boom_ray.data import rows
from boom_ray.errors import BoomError
from boom_ray.progress import Progress

if TYPE_CHECKING:
    from boom_ray.model.encoder import Encoder

MIN_ROWS_PER_BLOCK, MAX_ROWS_PER_BLOCK = 64, 4096
BLOCKS_PER_WORKER = 4
EXAMPLES = 5
POLL_SECONDS = 0.5
HASH_RANGE = 1 << 64


def embed(
    model: str,
    source: str,
    target: str,
    text_column: str = "text",
    id_column: str = "id",
    prompt_name: str | None = None,
    num_workers: int | None = None,
) -> Record:
    """Embed every text of a parquet or jsonl source into parquet.

    The result has the columns `id` (as in the source) and `embedding` (fixed_size_list<float32>[d], norm
    1), in no particular order.

    Args:
        model: URI of a model directory.
        source: URI of a file, or of a directory of files of one format.
        target: URI of the artifact to make; nothing is visible there when anything fails.
        text_column: The column of texts, strings; longer ones are cut at the model's maximum length.
        id_column: The column of ids, integers or strings.
        prompt_name: The model's prompt that goes before every text; none by default.
        num_workers: Encoders that work side by side; by default one per GPU, or one per two CPUs.

    Returns:
        The record of the embeddings.

    Raises:
        BoomError: if the target is taken, or the source, a column, the prompt or a text is not as above, all
            before any model is loaded; or if loading the model, reading or writing fails.
    """
    from boom_ray.model import directory

    _prepare_ray_data()
    artifact.refuse_existing(target)
    local = storage.local_directory(model)
    prompt = _prompt(model, directory.read_spec(local).prompts, prompt_name)
    texts = _open(source, text_column, id_column)
    survey = _survey(texts)
    parent = directory.identify(model)
    record = Record(
        kind="embeddings",
        name=storage.name_of(target),
        version=parent.version,
        fingerprint=artifact.fingerprint([parent.digest, prompt, survey.rows, survey.content]),
        config={
            "model": parent.digest,
            "prompt_name": prompt_name,
            "prompt": prompt,
            "dimensions": directory.dimension_of(local),
            "rows": survey.rows,
            "source": re.sub("//[^/]*@", "//", source),  # credentials can be part of a URI
            "text_column": text_column,
            "id_column": id_column,
        },
        parents=[parent],
    )
    with artifact.staged(target) as stage:
        _encode(texts, survey.rows, stage.uri, _Pool.of(num_workers, survey.rows), model, prompt)
        _take_stock(stage, survey.rows)
        return stage.commit(record)


def _prepare_ray_data() -> None:
    """Let errors arrive as they were raised; what Ray Data says of them stays in its own log file."""
    context = DataContext.get_current()
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)


def _prompt(model: str, prompts: dict[str, str], name: str | None) -> str:
    if name is not None and name not in prompts:
        raise BoomError(f"{model}: no prompt {name!r}; it has: {', '.join(sorted(prompts)) or 'none'}")
    return "" if name is None else prompts[name]


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Turn what Ray Data raises into one sentence, unless it is a fault of the program."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, BoomError):
            raise BoomError(_first_line(error.cause)) from error
        if isinstance(error.cause, OSError | pa.ArrowException):
            raise BoomError(f"{doing}: {_first_line(error.cause)}") from error
        raise
    except (OSError, pa.ArrowException) as error:
        raise BoomError(f"{doing}: {_first_line(error)}") from error
    except RayError as error:
        raise BoomError(f"{doing}: a worker was lost: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """What was raised, without the advice on retries that Ray Data appends."""
    return str(error).splitlines()[0]


# ── Reading ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Texts:
    """A source whose first file is known to have the columns asked for.

    Attributes:
        source: URI as the user gave it.
        files: URIs of its files, all of one format.
        id_type: int64 or string for jsonl; the integer or string type of the first file for parquet.
    """

    source: str
    files: list[str]
    text_column: str
    id_column: str
    id_type: pa.DataType

    def dataset(self) -> Dataset:
        """The columns `id` and `text`, lazily; what is no valid id or text is null in them."""
        if not _is_parquet(self.files[0]):
            items = ray.data.from_items(self.files, override_num_blocks=len(self.files))
            return items.map_batches(self._read_lines, batch_size=1, batch_format="pyarrow")
        filesystem, _ = storage.filesystem(self.source)
        table = ray.data.read_parquet(
            [storage.filesystem(uri)[1] for uri in self.files],
            filesystem=filesystem,
            columns=[self.id_column, self.text_column],
            partitioning=None,  # a directory named `id=3` must not override the column
        )
        return table.map_batches(self._rename, batch_size=None, batch_format="pyarrow")

    def _rename(self, batch: pa.Table) -> pa.Table:
        try:
            ids, texts = batch[self.id_column].cast(self.id_type), batch[self.text_column].cast(pa.string())
        except pa.ArrowInvalid as error:
            raise BoomError(f"{self.source}: a column differs in type between files: {error}") from error
        return pa.table({"id": ids, "text": texts})

    def _read_lines(self, batch: pa.Table) -> Iterator[pa.Table]:
        id_kind = str if pa.types.is_string(self.id_type) else int
        schema = pa.schema([("id", self.id_type), ("text", pa.string())])
        lines = itertools.chain.from_iterable(rows.read_raw(uri) for uri in batch["item"].to_pylist())
        while chunk := list(itertools.islice(lines, MAX_ROWS_PER_BLOCK)):
            raw = [_usable(place, row) for place, row in chunk]
            ids = [_valid(row.get(self.id_column), id_kind) for row in raw]
            texts = [_valid(row.get(self.text_column), str) for row in raw]
            yield pa.table([pa.array(ids, self.id_type), pa.array(texts, pa.string())], schema=schema)


def _is_parquet(uri: str) -> bool:
    return uri.endswith(".parquet")


def _usable(place: str, row: dict[str, Any] | rows.BadRow) -> dict[str, Any]:
    if isinstance(row, rows.BadRow):
        raise BoomError(f"{place}: {row}")
    return row


def _valid(value: Any, kind: type) -> Any:
    """The value, if it is of its kind and parquet can hold it; else None."""
    if isinstance(value, str) and kind is str:
        return value if value.isascii() or _is_unicode(value) else None
    if type(value) is int and kind is int:  # a bool is an int as well
        return value if -(1 << 63) <= value < 1 << 63 else None
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return False
    return True


def _open(source: str, text_column: str, id_column: str) -> _Texts:
    """Find the files of a source, and check the columns of the first."""
    files = [uri for uri in rows.data_files(source) if storage.name_of(uri) != artifact.RECORD]
    num_parquet = sum(map(_is_parquet, files))
    readable = all(uri.endswith(rows.SUFFIXES) for uri in files)
    if not files or not readable or num_parquet not in (0, len(files)):
        raise BoomError(f"{source}: expected {' or '.join(rows.SUFFIXES)} files of one format")
    columns = _parquet_columns(files[0]) if num_parquet else _json_columns(source, files)
    missing = [repr(column) for column in (text_column, id_column) if column not in columns]
    if missing:
        raise BoomError(
            f"{source}: no column {' and '.join(missing)}; it has {', '.join(columns)}. "
            "Name others with --text-column and --id-column"
        )
    id_type, text_type = columns[id_column], columns[text_column]
    if not (pa.types.is_integer(id_type) or _is_text(id_type)):
        raise BoomError(f"{source}: ids in {id_column!r} are {id_type}; allowed: integers or strings")
    if num_parquet and not _is_text(text_type):
        raise BoomError(f"{source}: texts in {text_column!r} are {text_type}; allowed: strings")
    return _Texts(source, files, text_column, id_column, id_type)


def _is_text(data_type: pa.DataType) -> bool:
    return pa.types.is_string(data_type) or pa.types.is_large_string(data_type)


def _parquet_columns(uri: str) -> dict[str, pa.DataType]:
    try:
        with storage.open_input(uri) as file:
            schema = pq.read_schema(file)
    except pa.ArrowInvalid as error:
        raise BoomError(f"{uri}: not a readable parquet file: {error}") from error
    return dict(zip(schema.names, schema.types, strict=True))


def _json_columns(source: str, files: list[str]) -> dict[str, pa.DataType]:
    """The columns of the first row; only ids have a type here, because texts are checked one by one."""
    first = next(itertools.chain.from_iterable(map(rows.read_raw, files)), None)
    if first is None:
        raise BoomError(f"{source}: holds no rows")
    types = {int: pa.int64(), str: pa.string(), float: pa.float64(), bool: pa.bool_()}
    return {key: types.get(type(value), pa.null()) for key, value in _usable(*first).items()}


# ── The first pass ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Survey:
    """Number of rows, and a hash of all ids and texts that does not depend on their order."""

    rows: int
    content: int


def _survey(texts: _Texts) -> _Survey:
    """Read everything once; refuse null ids, and texts that are null or not text."""
    with _explained(f"{texts.source}: cannot be read"):
        tallies = texts.dataset().map_batches(_tally, batch_size=None, batch_format="pyarrow").take_all()
    num_rows, null_ids, null_texts = (
        sum(tally[key] for tally in tallies) for key in ("rows", "null_ids", "null_texts")
    )
    if not num_rows:
        raise BoomError(f"{texts.source}: holds no rows")
    problems = []
    if null_ids:
        problems.append(f"{null_ids} ids in {texts.id_column!r} are null or not {texts.id_type}")
    if null_texts:
        examples = [example for tally in tallies for example in tally["examples"]][:EXAMPLES]
        which = ", ".join(examples) + (", …" if null_texts > len(examples) else "")
        problems.append(f"{null_texts} texts in {texts.text_column!r} are null or not text: id {which}")
    if problems:
        raise BoomError.of(problems, f"{texts.source}: mend or drop these of its {num_rows} rows:")
    return _Survey(num_rows, sum(tally["content"] for tally in tallies) % HASH_RANGE)


def _tally(batch: pa.Table) -> pa.Table:
    """One row that sums up a block."""
    pairs = list(zip(batch["id"].to_pylist(), batch["text"].to_pylist(), strict=True))
    examples = [repr(key) for key, text in pairs if text is None][:EXAMPLES]
    content = sum(xxhash.xxh3_64_intdigest(repr(pair).encode()) for pair in pairs) % HASH_RANGE
    return pa.table(
        {
            "rows": [len(pairs)],
            "null_ids": [batch["id"].null_count],
            "null_texts": [batch["text"].null_count],
            "examples": pa.array([examples], pa.list_(pa.string())),
            "content": pa.array([content], pa.uint64()),
        }
    )


# ── The second pass ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Pool:
    """How the cluster is shared between encoders.

    Attributes:
        size: Encoders, each an actor.
        num_cpus: CPUs an actor reserves: at most one, and all leave one for reading and writing.
        num_gpus: GPUs an actor reserves.
        threads: Threads it computes with: its share of all CPUs, for reading and writing take little.
    """

    size: int
    num_cpus: float
    num_gpus: float
    threads: int

    @classmethod
    def of(cls, num_workers: int | None, num_rows: int) -> "_Pool":
        """`num_workers` encoders, by default one per GPU or one per two CPUs; fewer if there are few rows."""
        cpus, gpus = (ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU"))
        wanted = num_workers or max(1, int(gpus) or int(cpus) // 2)
        size = min(wanted, -(-num_rows // MIN_ROWS_PER_BLOCK))
        return cls(
            size=size,
            num_cpus=min(1, max(0, cpus - 1) / size),
            num_gpus=min(1, gpus / size),
            threads=max(1, int(cpus) // size),
        )


@ray.remote(num_cpus=0)
class _RowCounter:
    """How many rows are embedded so far."""

    def __init__(self) -> None:
        self.rows = 0

    def add(self, num_rows: int) -> None:
        self.rows += num_rows

    def read(self) -> int:
        return self.rows


class _BlockEncoder:
    """One actor's work: blocks of `id` and `text` in, blocks of `id` and `embedding` out."""

    def __init__(self, model: str, prompt: str, pool: _Pool, counter: Any) -> None:
        self.model, self.prompt, self.pool, self.counter = model, prompt, pool, counter

    @cached_property
    def encoder(self) -> "Encoder":
        """Loaded with the first block: what a constructor raises, Ray Data reports as a dead actor."""
        import torch

        from boom_ray.model import directory

        torch.set_num_threads(self.pool.threads)
        device = "cuda" if self.pool.num_gpus else "cpu"
        return directory.load_encoder(storage.local_directory(self.model), device=device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        vectors = self.encoder.encode(batch["text"].to_pylist(), self.prompt)
        self.counter.add.remote(len(vectors))
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        return pa.table({"id": batch["id"], "embedding": embedding})


def _encode(texts: _Texts, num_rows: int, target: str, pool: _Pool, model: str, prompt: str) -> None:
    """Write the embeddings of all texts as parquet files below `target`."""
    counter: Any = _RowCounter.remote()  # type: ignore[attr-defined]
    filesystem, path = storage.filesystem(target)
    share = -(-num_rows // (pool.size * BLOCKS_PER_WORKER))
    rows_per_block = min(max(share, MIN_ROWS_PER_BLOCK), MAX_ROWS_PER_BLOCK)
    with _explained(f"{texts.source}: cannot be embedded into {target}"), _reported(counter, num_rows):
        texts.dataset().repartition(target_num_rows_per_block=rows_per_block, strict=True).map_batches(
            _BlockEncoder,
            fn_constructor_args=(model, prompt, pool, counter),
            compute=ActorPoolStrategy(size=pool.size),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
        ).write_parquet(path, filesystem=filesystem)


@contextmanager
def _reported(counter: Any, total: int) -> Iterator[None]:
    """Show the counter until the block ends."""
    ended = threading.Event()

    def watch(progress: Progress) -> None:
        while not ended.wait(POLL_SECONDS):
            progress.update("embed", min(ray.get(counter.read.remote()), total), total, "rows")

    with Progress() as progress:
        thread = threading.Thread(target=watch, args=(progress,), daemon=True)
        thread.start()
        try:
            yield
            progress.update("embed", total, total, "rows")
        finally:
            ended.set()
            thread.join()


def _take_stock(stage: Stage, num_rows: int) -> None:
    """Hash what the workers wrote, and make sure that it is every row once."""
    written = 0
    for name in storage.list_files(stage.uri):
        uri = storage.join(stage.uri, name)
        stage.entries[name] = artifact.hash_file(uri)
        with storage.open_input(uri) as file:
            written += pq.read_metadata(file).num_rows
    if written != num_rows:
        raise BoomError(
            f"{stage.target}: {written} rows were written, {num_rows} read before. Did the source change?"
            " Run the command again"
        )

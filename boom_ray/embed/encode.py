"""The second pass: read, tokenize, encode and write, each partition by itself and all of them as a stream.

A partition travels as one row with lists in it, so that no stage of Ray Data can split it or mix it with
another: its texts are sorted and batched alone, and a rerun gives the same vectors.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import xxhash
from ray.data import ActorPoolStrategy, Dataset

from boom_ray import storage
from boom_ray.embed.probe import Compute
from boom_ray.embed.source import Source, partitions
from boom_ray.embed.vectors import Reduction
from boom_ray.errors import BoomError
from boom_ray.model.spec import EncoderSpec

if TYPE_CHECKING:
    from boom_ray.model.encoder import Encoder

ATTEMPTS = 5  # of a write that the storage refuses
FIRST_PAUSE = 0.5  # seconds, doubled after each
MIN_ROWS, MAX_ROWS, WANTED_PARTITIONS = 128, 16384, 64


@dataclass(frozen=True)
class Plan:
    """All that decides the content of the output, and where it is written.

    Attributes:
        model: URI of the model directory.
        spec: Its pooling and length.
        prompt: Text before every input.
        rows: Rows of each unit that are embedded.
        known: Reference of the sorted keys of rows that are not.
        target: URI below which the partitions are written.
    """

    source: Source
    model: str
    spec: EncoderSpec
    prompt: str
    rows: list[int]
    known: Any
    target: str
    reduction: Reduction

    @property
    def partition_rows(self) -> int:
        """Rows of a partition at most: a function of the input alone, not of the cluster."""
        return min(max(sum(self.rows) // WANTED_PARTITIONS, MIN_ROWS), MAX_ROWS)

    def wanted(self, number: int) -> Iterator[tuple[str, pa.Table]]:
        """File name and rows of each partition of a unit."""
        source, left = self.source, self.rows[number]
        cut = partitions(source, source.units[number], self.partition_rows, ray.get(self.known))
        for index, table in enumerate(cut):
            if left <= 0:
                return
            yield f"part-{number:06d}-{index:06d}.parquet", table.slice(0, left)
            left -= len(table)


@dataclass(frozen=True)
class Pool:
    """How the cluster is shared between encoders.

    Attributes:
        size: Encoders at most, each an actor.
        num_cpus: CPUs an actor reserves: at most one, and all leave one for reading and writing.
        num_gpus: GPUs an actor reserves.
        compute: Its precision and threads; reading and writing take little beside them.
    """

    size: int
    num_cpus: float
    num_gpus: float
    compute: Compute

    @classmethod
    def of(cls, num_workers: int | None, num_partitions: int, compute: Compute) -> "Pool":
        """`num_workers` encoders, by default one per GPU or per so many threads; no more than partitions."""
        cpus, gpus = (ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU"))
        wanted = num_workers or int(gpus) or int(cpus) // (compute.threads or int(cpus) or 1)
        size = max(1, min(wanted, num_partitions))
        nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        return cls(
            size=size,
            num_cpus=min(1, max(0, cpus - 1) / size),
            num_gpus=min(1, gpus / size),
            compute=replace(compute, threads=max(1, int(min(cpus // size, max(nodes))))),
        )


def encoded(plan: Plan, pool: Pool, done: set[str]) -> Dataset:
    """The stream of partitions that are not done, each a row: its file, its counts, and the seconds spent."""
    items = [{"unit": number} for number, rows in enumerate(plan.rows) if rows]
    reading: Any = {"num_cpus": 0.25, "batch_size": 1, "batch_format": "pyarrow"}
    return (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(partial(_read, plan=plan, done=done), **reading)
        .map_batches(partial(_tokenize, plan=plan), **reading)
        .map_batches(
            PartitionEncoder,
            fn_constructor_args=(replace(plan, known=None), pool),  # a reference would not survive a restart
            compute=ActorPoolStrategy(min_size=1, max_size=pool.size),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
        )
        .map_batches(partial(_write, plan=plan), **reading)
    )


def _read(batch: pa.Table, plan: Plan, done: set[str]) -> Iterator[pa.Table]:
    since = time.perf_counter()
    for name, table in plan.wanted(batch["unit"][0].as_py()):
        if name not in done:
            yield _as_row(table, file=name, texts=len(table), read=time.perf_counter() - since)
        since = time.perf_counter()


def _tokenize(batch: pa.Table, plan: Plan) -> pa.Table:
    from boom_ray.embed.pieces import cut

    options, texts = plan.source.options, batch["text"][0].as_py()
    tokenizer = _tokenizer(storage.local_directory(plan.model))
    since = time.perf_counter()
    pieces = cut(tokenizer, texts, plan.prompt, plan.spec.max_length, options.chunk, options.overlap)
    columns = {
        "token_ids": pa.array([pieces.token_ids], pa.list_(pa.list_(pa.int32()))),
        "piece_of": pa.array([pieces.text.tolist()]),
        "tokens": pa.array([sum(map(len, pieces.token_ids))]),
        "tokenize": pa.array([time.perf_counter() - since]),
    }
    table = batch.drop_columns(["text"])
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


@cache
def _tokenizer(local: str) -> Any:
    from boom_ray.model import directory, tokenizer

    return tokenizer.load(local, directory.read_spec(local))


class PartitionEncoder:
    """One actor's work: token ids in, stored vectors out."""

    def __init__(self, plan: Plan, pool: Pool) -> None:
        self.plan, self.pool = plan, pool

    @cached_property
    def encoder(self) -> "Encoder":
        """Loaded with the first partition: what a constructor raises, Ray Data reports as a dead actor."""
        import torch

        from boom_ray.model import directory

        torch.set_num_threads(self.pool.compute.threads or 1)
        local, dtype = storage.local_directory(self.plan.model), getattr(torch, self.pool.compute.precision)
        device = "cuda" if self.pool.num_gpus else "cpu"
        return directory.load_encoder(local, device=device, dtype=dtype).for_inference()

    def __call__(self, batch: pa.Table) -> pa.Table:
        from boom_ray.embed.pieces import Pieces, mean_of_pieces
        from boom_ray.model.encoder import chunk_by_tokens

        options, text = self.plan.source.options, np.array(batch["piece_of"][0].as_py(), dtype=np.int64)
        pieces = Pieces(batch["token_ids"][0].as_py(), text)
        encoder, began, since = self.encoder, time.time(), time.perf_counter()
        vectors = encoder.encode_tokens(pieces.token_ids, options.chunk_tokens)
        spent = time.perf_counter() - since
        rows, lengths = _rows(batch), np.array([len(ids) for ids in pieces.token_ids])
        chunks = chunk_by_tokens(lengths, options.chunk_tokens)
        if options.chunk and options.chunk_output == "mean":
            vectors = mean_of_pieces(vectors, pieces, len(rows))
        elif options.chunk:
            rows = rows.take(pa.array(text))
            first = np.searchsorted(text, text)
            rows = rows.add_column(1, "chunk", pa.array(np.arange(len(text)) - first, pa.int32()))
        rows = rows.append_column("embedding", self.plan.reduction(vectors))
        padded = sum(len(chunk) * int(lengths[chunk].max()) for chunk in chunks)
        return _as_row(rows, **_values(batch), encode=spent, padded=padded, began=began)


def _write(batch: pa.Table, plan: Plan) -> pa.Table:
    """Store one partition under its name in one step; a repeated attempt replaces it by the same."""
    since, values, rows = time.perf_counter(), _values(batch), _rows(batch)
    kept = {name.encode(): str(values[name]).encode() for name in ("tokens", "texts")}
    sink = pa.BufferOutputStream()
    pq.write_table(rows.replace_schema_metadata(kept), sink, compression="zstd", use_dictionary=False)
    content = sink.getvalue().to_pybytes()
    _store(storage.join(plan.target, values["file"]), content)
    hashed = xxhash.xxh3_128_hexdigest(content)
    stored = {
        "size": len(content),
        "xxh3_128": hashed,
        "write": time.perf_counter() - since,
        "ended": time.time(),
    }
    return pa.Table.from_pylist([{**values, **stored}])


def _store(uri: str, content: bytes) -> None:
    pause = FIRST_PAUSE
    for attempt in range(ATTEMPTS):
        try:
            return storage.write_bytes(uri, content)
        except BoomError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(pause)
            pause *= 2


def _as_row(table: pa.Table, **values: Any) -> pa.Table:
    """A table as one row whose columns hold lists, beside single values."""
    columns: dict[str, Any] = {name: pa.array([value]) for name, value in values.items()}
    for name in table.column_names:
        column = table[name].combine_chunks()
        column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
        offsets = pa.array([0, len(column)], pa.int64())
        columns[name] = pa.LargeListArray.from_arrays(offsets, column)
    return pa.table(columns)


def _rows(row: pa.Table) -> pa.Table:
    """The table that `_as_row` made a row of."""
    lists = [field.name for field in row.schema if pa.types.is_large_list(field.type)]
    return pa.table({name: row[name].chunk(0)[0].values for name in lists})


def _values(row: pa.Table) -> dict[str, Any]:
    """The single values beside it."""
    names = [field.name for field in row.schema if not pa.types.is_nested(field.type)]
    return {name: row[name][0].as_py() for name in names}

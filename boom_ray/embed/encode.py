"""The second pass: read, tokenize, encode and write, each partition alone and all of them as a stream.

The texts of a partition are sorted and batched among themselves, never with those of another, so a run that
is repeated or resumed computes the same vectors.
"""

import gc
import time
import traceback
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import xxhash
from ray.data import ActorPoolStrategy, Dataset

from boom_ray import storage
from boom_ray.embed.embed_plan import EmbedPlan, EncoderPool
from boom_ray.embed.partition import Partition, PartitionMetadata
from boom_ray.embed.tokens import tokenizer_of
from boom_ray.errors import NotFoundError, StorageError
from boom_ray.runtime import devices

if TYPE_CHECKING:
    from boom_ray.embed.pieces import Pieces
    from boom_ray.model.encoder import Encoder

WRITE_ATTEMPTS = 5
FIRST_PAUSE = 0.5  # seconds, doubled after each attempt


def encode_partitions(plan: EmbedPlan, pool: EncoderPool, done: set[str]) -> Generator[Partition, None, None]:
    """Encode and store the partitions of a plan.

    Args:
        done: Files of partitions that an earlier run stored; they are skipped.

    Yields:
        Each partition when it is stored. The end of the iterator, also by an error, ends the encoders.
    """
    rows: Any = iter(_stages(plan, pool, done).iter_rows())
    try:
        yield from map(Partition.from_row, rows)
    except Exception as error:
        _release_encoders(error)
        raise
    finally:
        rows.close()


def _release_encoders(error: Exception) -> None:
    """Drop what an exception of Ray Data, and the exceptions before it, hold of Ray Data's loop.

    Ray ends an actor with its last handle, and those exceptions hold some, in reference cycles: the CPUs of
    the encoders would stay reserved until Python collects them, and longer if the caller keeps the exception.
    """
    traceback.clear_frames(error.__traceback__)
    error.__cause__ = error.__context__ = None
    gc.collect()


def _stages(plan: EmbedPlan, pool: EncoderPool, done: set[str]) -> Dataset:
    """The dataset of stored partitions, each a row of the fields of `Partition`."""
    items = [{"unit": number} for number, rows in enumerate(plan.rows) if rows]
    stage: Any = {"num_cpus": 0.25, "batch_size": 1, "batch_format": "pyarrow"}
    return (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(partial(_read, plan=plan, done=done), **stage)
        .map_batches(partial(_tokenize, plan=plan), **stage)
        .map_batches(
            PartitionEncoder,
            # Encoders do not read the source, and a reference in the arguments of an actor may be lost when
            # Ray restarts the actor.
            fn_constructor_args=(replace(plan, earlier_keys=None), pool),
            # All start at once, and some may end: a pool of fixed size would wait for nodes that were lost.
            compute=ActorPoolStrategy(min_size=1, initial_size=pool.size, max_size=pool.size),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
        )
        .map_batches(partial(_write, plan=plan), **stage)
    )


def _read(batch: pa.Table, plan: EmbedPlan, done: set[str]) -> Iterator[pa.Table]:
    started = time.perf_counter()
    for file, table in plan.partitions(batch["unit"][0].as_py()):
        if file not in done:
            yield Partition(file, texts=len(table), read=time.perf_counter() - started).to_arrow(table)
        started = time.perf_counter()


def _tokenize(batch: pa.Table, plan: EmbedPlan) -> pa.Table:
    from boom_ray.embed.pieces import cut

    partition, rows = Partition.from_arrow(batch)
    options, texts = plan.source.options, rows["text"].to_pylist()
    tokenizer = tokenizer_of(storage.local_directory(plan.model))
    started = time.perf_counter()
    pieces = cut(tokenizer, texts, plan.prompt, plan.spec.max_length, options.chunk, options.overlap)
    seconds, tokens = time.perf_counter() - started, pieces.tokens
    row = replace(partition, tokens=len(tokens.ids), tokenize=seconds).to_arrow(rows.drop_columns(["text"]))
    for name, values in (("ids", tokens.ids), ("lengths", tokens.lengths), ("piece_of", pieces.text)):
        row = row.append_column(name, pa.array([values]))
    return row


class PartitionEncoder:
    """The actor that encodes: token ids in, stored numbers out."""

    def __init__(self, plan: EmbedPlan, pool: EncoderPool) -> None:
        self.plan, self.pool = plan, pool

    @cached_property
    def encoder(self) -> "Encoder":
        """The model, loaded with the first partition.

        Ray Data reports an exception of a constructor as a dead actor, without the exception itself.
        """
        import torch

        from boom_ray.model import directory

        torch.set_num_threads(self.pool.compute.threads or 1)
        local, dtype = storage.local_directory(self.plan.model), getattr(torch, self.pool.compute.precision)
        device = "cuda" if self.pool.num_gpus else "cpu"
        devices.check(device)
        return directory.load_encoder(local, device=device, dtype=dtype).for_inference()

    def __call__(self, batch: pa.Table) -> pa.Table:
        from boom_ray.embed.pieces import Pieces
        from boom_ray.model.tokens import Tokens

        partition, rows = Partition.from_arrow(batch)
        ids, lengths, text = (_numpy(batch[name]) for name in ("ids", "lengths", "piece_of"))
        encoder, began, started = self.encoder, time.time(), time.perf_counter()
        budget = self.plan.source.options.chunk_tokens or encoder.chunk_tokens
        skipped = np.full_like(lengths, encoder.skipped_tokens(self.plan.prompt))
        pieces = Pieces(Tokens(ids, lengths, skipped), text)
        vectors = encoder.encode_tokens(pieces.tokens, budget)
        seconds, layout = time.perf_counter() - started, encoder.layout
        padded = sum(layout.chunk_sizes(lengths, layout.chunks(lengths, budget)))
        return replace(partition, encode=seconds, padded=padded, began=began).to_arrow(
            self._with_vectors(rows, vectors, pieces)
        )

    def _with_vectors(self, rows: pa.Table, vectors: np.ndarray, pieces: "Pieces") -> pa.Table:
        """Rows with their vectors: one row per text, or one per chunk of it."""
        from boom_ray.embed.pieces import mean_of_pieces

        options = self.plan.source.options
        if options.chunk and not options.has_chunk_rows:
            vectors = mean_of_pieces(vectors, pieces, len(rows))
        elif options.has_chunk_rows:
            rows = rows.take(pa.array(pieces.text))
            first = np.searchsorted(pieces.text, pieces.text)
            number = pa.array(np.arange(len(pieces.text)) - first, pa.int32())
            rows = rows.add_column(1, "chunk", number)
        return rows.append_column("embedding", self.plan.reduction(vectors))


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    """The values of a list column of one row."""
    return column[0].values.to_numpy()


def _write(batch: pa.Table, plan: EmbedPlan) -> pa.Table:
    """Store a partition in one step under its name; a retry replaces it with the same content."""
    started = time.perf_counter()
    partition, rows = Partition.from_arrow(batch)
    sink = pa.BufferOutputStream()
    assert plan.compute is not None
    metadata = PartitionMetadata(partition.tokens, partition.texts, plan.compute, plan.reduction.scales)
    table = rows.rename_columns(plan.output_schema.names).replace_schema_metadata(metadata.to_arrow())
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    content = sink.getvalue().to_pybytes()
    _store(storage.join(plan.target, partition.file), content)
    return replace(
        partition,
        size=len(content),
        xxh3_128=xxhash.xxh3_128_hexdigest(content),
        write=time.perf_counter() - started,
        ended=time.time(),
    ).to_arrow()


def write_empty(plan: EmbedPlan) -> Partition:
    """Store a partition without rows: an output to which nothing was added still has its columns."""
    empty = Partition("part-000000-000000.parquet", texts=0).to_arrow(plan.output_schema.empty_table())
    return Partition.from_arrow(_write(empty, plan))[0]


def _store(uri: str, content: bytes) -> None:
    """Write a file, with retries: an error of the store must not cost the work of encoding."""
    pause = FIRST_PAUSE
    for attempt in range(1, WRITE_ATTEMPTS + 1):
        try:
            return storage.write_bytes(uri, content)
        except (StorageError, NotFoundError):
            if attempt == WRITE_ATTEMPTS:
                raise
            time.sleep(pause)
            pause *= 2

"""The plan of an embedding run, and the pool of encoders that carries it out."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray

from boom_ray.embed.probe import ComputeSettings
from boom_ray.embed.text_source import COPIED, TextSource
from boom_ray.embed.vectors import Reduction
from boom_ray.model.spec import EncoderSpec
from boom_ray.runtime import capacity

MIN_ROWS, MAX_ROWS, TARGET_PARTITIONS = 128, 16384, 64


@dataclass(frozen=True)
class EmbedPlan:
    """Everything that determines the content of the output, and its location.

    Attributes:
        source: The input.
        model: URI of the model directory.
        spec: Pooling and maximum length of the model.
        prompt: Text before every input.
        rows: Rows of each unit to embed.
        earlier_keys: Ray reference of the sorted `row_keys` of rows to skip.
        target: URI below which the partitions are written.
        reduction: From embeddings to stored numbers.
        compute: Precision and threads of an encoder; None before they are chosen.
    """

    source: TextSource
    model: str
    spec: EncoderSpec
    prompt: str
    rows: list[int]
    earlier_keys: Any
    target: str
    reduction: Reduction
    compute: ComputeSettings | None = None

    @property
    def output_schema(self) -> pa.Schema:
        """Columns of the output."""
        assert self.source.schema is not None
        fields = [field.with_name(field.name.removeprefix(COPIED)) for field in self.source.schema]
        del fields[self.source.schema.get_field_index("text")]
        if self.source.options.has_chunk_rows:
            fields.insert(1, pa.field("chunk", pa.int32()))
        return pa.schema([*fields, pa.field("embedding", self.reduction.arrow_type)])

    @property
    def partition_rows(self) -> int:
        """Maximum rows of a partition: a function of the input alone, so that any cluster can resume."""
        return min(max(sum(self.rows) // TARGET_PARTITIONS, MIN_ROWS), MAX_ROWS)

    def partitions(self, number: int) -> Iterator[tuple[str, pa.Table]]:
        """File name and rows of each partition of unit `number`."""
        unit, left = self.source.units[number], self.rows[number]
        tables = self.source.partitions(unit, self.partition_rows, ray.get(self.earlier_keys))
        for index, table in enumerate(tables):
            yield f"part-{number:06d}-{index:06d}.parquet", table.slice(0, left)
            left -= len(table)
            if left <= 0:  # the rest need not be read
                return

    def first_texts(self, count: int) -> list[str]:
        """Texts of the first rows to embed."""
        texts: list[str] = []
        for number, num_rows in enumerate(self.rows):
            for _, table in self.partitions(number) if num_rows else ():
                texts += table["text"].to_pylist()
                if len(texts) >= count:
                    return texts[:count]
        return texts


@dataclass(frozen=True)
class EncoderPool:
    """The encoders and their shares of the cluster.

    Attributes:
        size: Maximum number of encoders, each an actor.
        num_cpus: CPUs an actor reserves: at most one, and all together leave one of those that other work
            does not use for reading and writing, which would else wait for the encoders' CPUs for ever.
            Where the autoscaler must start nodes for them, at most as many as it has threads.
        num_gpus: GPUs an actor reserves.
        compute: Precision and threads of an encoder. Threads may exceed `num_cpus`: the other stages need
            little time on the same CPUs.
    """

    size: int
    num_cpus: float
    num_gpus: float
    compute: ComputeSettings

    @classmethod
    def of(
        cls, num_workers: int | None, num_partitions: int, compute: ComputeSettings, device: str
    ) -> "EncoderPool":
        """A pool on the cluster this process is connected to, with the nodes that its autoscaler may start.

        Args:
            num_workers: Maximum encoders; by default one per GPU, or per `compute.threads` CPUs.
            num_partitions: Partitions to encode: more encoders would be idle.
            device: `cuda` or `cpu`.
        """
        cpus, gpus = capacity.potential({"CPU": 1}), 0
        if device == "cuda":
            gpus = max(1, capacity.potential({"GPU": 1}))
        wanted = num_workers or gpus or cpus // (compute.threads or cpus or 1)
        size = max(1, min(wanted, num_partitions))
        threads = max(1, min(cpus // size, capacity.most_cpus()))
        grows = not gpus and cpus > capacity.live({"CPU": 1})
        shared = max(0, cpus - capacity.used("CPU") - 1)
        return cls(
            size=size,
            num_cpus=min(threads if grows else 1, shared / size),
            num_gpus=min(1, gpus / size),
            compute=replace(compute, threads=threads),
        )

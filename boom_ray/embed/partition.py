"""A partition of the output: the unit of work, of storage and of resumption.

Between the stages of Ray Data a partition is one row: a scalar column for each field of `Partition`, and its
table in list columns. So no stage can split it or mix it with another.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

from boom_ray.embed.probe import ComputeSettings
from boom_ray.embed.vectors import Scales

METADATA_KEY = b"boom_ray"
ROWS = "rows."  # prefix of the list columns: a column of the input may be named like a field of `Partition`
ARROW_TYPES: Mapping[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64()}


@dataclass(frozen=True)
class PartitionMetadata:
    """The metadata of a partition's parquet file about its vectors.

    A run that resumes reads the counts instead of the rows, and computes the other partitions alike.

    Attributes:
        tokens: Tokens that were encoded.
        texts: Rows of the input.
        compute: Precision and threads of the encoder.
        scales: Ranges of the dimensions, for `int8` and `uint8`.
    """

    tokens: int
    texts: int
    compute: ComputeSettings
    scales: Scales | None = None

    def to_arrow(self) -> dict[bytes, bytes]:
        """As the key-value metadata of a parquet file; the order of the keys is part of the file's bytes."""
        values: dict[str, Any] = {"tokens": self.tokens, "texts": self.texts, **asdict(self.compute)}
        return {METADATA_KEY: json.dumps(values | (self.scales.to_lists() if self.scales else {})).encode()}

    @classmethod
    def from_arrow(cls, metadata: Mapping[bytes, bytes]) -> "PartitionMetadata":
        """From the key-value metadata of a parquet file."""
        values = json.loads(metadata[METADATA_KEY])
        compute = ComputeSettings(values["precision"], values["threads"])
        scales = Scales.from_lists(values["low"], values["high"]) if "low" in values else None
        return cls(values["tokens"], values["texts"], compute, scales)


@dataclass(frozen=True)
class Partition:
    """A partition and its statistics; each stage fills in its own.

    Attributes:
        file: Name of its parquet file.
        texts: Rows of the input.
        tokens: Tokens that were encoded, special tokens and prompts included.
        padded: The same with padding.
        read: Seconds to read it.
        tokenize: Seconds to tokenize it.
        encode: Seconds to encode it.
        write: Seconds to write it.
        began: Start of encoding, seconds since 1970.
        ended: End of writing, seconds since 1970.
        size: Bytes of the file.
        xxh3_128: Hash of the file, hexadecimal.
    """

    file: str
    texts: int
    tokens: int = 0
    padded: int = 0
    read: float = 0.0
    tokenize: float = 0.0
    encode: float = 0.0
    write: float = 0.0
    began: float = 0.0
    ended: float = 0.0
    size: int = 0
    xxh3_128: str = ""

    def to_arrow(self, table: pa.Table | None = None) -> pa.Table:
        """One row: the fields, and the columns of `table` as lists."""
        columns: dict[str, Any] = {
            field.name: pa.array([getattr(self, field.name)], ARROW_TYPES[field.type])
            for field in fields(self)
        }
        for name, values in zip(table.column_names, table.columns, strict=True) if table is not None else ():
            column = values.combine_chunks()
            column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
            offsets = pa.array([0, len(column)], pa.int64())
            columns[ROWS + name] = pa.LargeListArray.from_arrays(offsets, column)
        return pa.table(columns)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Partition":
        """From a row as Ray Data iterates over it."""
        return cls(**{field.name: row[field.name] for field in fields(cls)})

    @classmethod
    def from_arrow(cls, row: pa.Table) -> "tuple[Partition, pa.Table]":
        """Undo `to_arrow`: the partition and its table."""
        partition = cls.from_row({field.name: row[field.name][0].as_py() for field in fields(cls)})
        names = [name for name in row.column_names if name.startswith(ROWS)]
        table = {name.removeprefix(ROWS): row[name].chunk(0)[0].values for name in names}
        return partition, pa.table(table)

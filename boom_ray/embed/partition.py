"""A partition of the output: the unit of work, of storage and of resumption.

Between the stages of Ray Data a partition is one row: a scalar column for each field of `Partition`, and its
table in list columns. So no stage can split it or mix it with another.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

ROWS = "rows."  # prefix of the list columns: a column of the input may be named like a field of `Partition`
ARROW_TYPES: Mapping[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64()}


@dataclass(frozen=True)
class PartitionCounts:
    """Counts stored in the metadata of a partition's parquet file.

    A run that resumes reads them instead of the rows. The order of the fields is part of the file's bytes.
    """

    tokens: int
    texts: int

    def to_metadata(self) -> dict[bytes, bytes]:
        """As the key-value metadata of a parquet file."""
        return {name.encode(): str(value).encode() for name, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes]) -> "PartitionCounts":
        """From the key-value metadata of a parquet file."""
        return cls(**{field.name: int(metadata[field.name.encode()]) for field in fields(cls)})


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

    @property
    def counts(self) -> PartitionCounts:
        """The counts that its file stores."""
        return PartitionCounts(self.tokens, self.texts)

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

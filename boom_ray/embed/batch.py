"""The columns that readers of files read, and the batches of rows that they yield."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa

from boom_ray.errors import InputError

BATCH_ROWS, BATCH_BYTES = 1024, 4 << 20  # of texts: the work per batch is small compared with that per row
FEW_ROWS = 64  # of a batch of a run with a limit, which need not read far behind it
T = TypeVar("T")


@dataclass(frozen=True)
class Columns:
    """The columns to read.

    Attributes:
        text: Column of texts.
        id: Column of ids; None: rows have none.
        id_type: string, or an integer type.
        others: Columns that are copied, or that the filter names.
        batch_rows: Maximum rows of a batch.
    """

    text: str
    id: str | None
    id_type: pa.DataType
    others: tuple[str, ...]
    batch_rows: int = BATCH_ROWS

    @property
    def names(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys([self.text, *([self.id] if self.id else []), *self.others]))


@dataclass
class RowBatch:
    """Consecutive rows of a file.

    Attributes:
        columns: Values of the wanted columns that the rows have.
        numbers: Number of each row in its file: of its line in JSON lines and text files.
        names: Names of columns that the rows have, wanted or not.
    """

    columns: dict[str, pa.Array]
    numbers: list[int]
    names: Iterable[str] = field(default_factory=list)


def gathered(items: Iterable[T], size_of: Callable[[T], int], max_rows: int) -> Iterator[list[T]]:
    """Runs of at most `max_rows` items, which end with the one that completes `BATCH_BYTES`."""
    run, size = list[T](), 0
    for item in items:
        run.append(item)
        size += size_of(item)
        if len(run) >= max_rows or size >= BATCH_BYTES:
            yield run
            run, size = [], 0
    if run:
        yield run


def refuse_repeated(uri: str, names: list[str], columns: Columns) -> None:
    """Refuse a file in which two columns have the name of one that is read.

    Raises:
        InputError: naming them.
    """
    repeated = [name for name in columns.names if names.count(name) > 1]
    if repeated:
        raise InputError(f"{uri}: several columns have the name {', '.join(repeated)}. Rename them")


def decoded(value: bytes | None) -> str | None:
    """The text of bytes; None if they are not UTF-8."""
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can contain it, UTF-8 cannot
        return False
    return True

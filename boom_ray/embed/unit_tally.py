"""Sums over the rows of one unit of a source."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from boom_ray.embed.text_source import row_keys
from boom_ray.embed.tokens import TokenCheck

EXAMPLES = 5
TALLY_SCHEMA = pa.schema(
    [
        *(
            (name, pa.int64())
            for name in ("unit", "all", "new", "null_ids", "null_texts", "empty", "tokenless")
        ),
        *((name, pa.list_(pa.string())) for name in ("null_text_ids", "empty_ids", "tokenless_ids", "names")),
        ("content", pa.int64()),
        ("ids", pa.large_binary()),
        ("types", pa.binary()),
    ]
)


@dataclass
class UnitTally:
    """Sums over the rows of one unit; Ray Data returns it as a row of `TALLY_SCHEMA`.

    Attributes:
        unit: Number of the unit.
        all: Rows.
        new: Rows that no earlier output contains.
        null_ids: Ids that are null or of a wrong type.
        null_texts: Texts that are null or not text.
        empty: Texts that are empty.
        tokenless: Texts that have no tokens.
        null_text_ids: Ids of the first null texts, as text.
        empty_ids: Ids of the first empty texts, as text.
        tokenless_ids: Ids of the first texts without tokens, as text.
        content: Sum of the keys of all rows, modulo 2**62.
        ids: Hashes of all ids, uint64.
        names: Names of columns that the rows have.
        types: The smallest schema that holds the rows, serialized; empty without rows.
    """

    unit: int
    all: int = 0
    new: int = 0
    null_ids: int = 0
    null_texts: int = 0
    empty: int = 0
    tokenless: int = 0
    null_text_ids: list[str] = field(default_factory=list)
    empty_ids: list[str] = field(default_factory=list)
    tokenless_ids: list[str] = field(default_factory=list)
    content: int = 0
    ids: bytes = b""
    names: list[str] = field(default_factory=list)
    types: bytes = b""

    def add(self, table: pa.Table, earlier_keys: np.ndarray, check: TokenCheck | None) -> None:
        """Count the rows of a table; their ids are up to the caller."""
        keys = row_keys(table)
        texts = list(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
        empty = [repr(identity) for identity, text in texts if text == ""]
        self._count_tokenless(texts, check)
        self.all += len(table)
        self.new += int((~np.isin(keys, earlier_keys)).sum())
        self.null_ids += table["id"].null_count
        self.null_texts += table["text"].null_count
        self.empty += len(empty)
        self.null_text_ids += [repr(identity) for identity, text in texts if text is None]
        self.empty_ids += empty
        del self.null_text_ids[EXAMPLES:], self.empty_ids[EXAMPLES:]
        self.content = (self.content + int(keys.sum(dtype=np.uint64))) % (1 << 62)

    def _count_tokenless(self, texts: list[tuple[Any, str | None]], check: TokenCheck | None) -> None:
        """Count the texts without tokens."""
        if check is None:
            return
        lacking = check.lacking([text or "" for _, text in texts])
        found = [repr(identity) for (identity, text), lacks in zip(texts, lacking, strict=True)
                 if lacks and text is not None]  # fmt: skip
        self.tokenless += len(found)
        self.tokenless_ids += found
        del self.tokenless_ids[EXAMPLES:]

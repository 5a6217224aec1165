"""Reader of CSV files: cells of any length, as text.

The reader of pyarrow takes types from its first block, and no cell that is larger than a block.
"""

import csv
import io
import itertools
import sys
from collections.abc import Iterator

import pyarrow as pa

from boom_ray.data.source_files import open_stream
from boom_ray.embed.batch import Columns, RowBatch, gathered, is_unicode, refuse_repeated
from boom_ray.errors import InputError

DELIMITERS = ",;\t|"
csv.field_size_limit(sys.maxsize)  # a text may be long


def csv_batches(uri: str, columns: Columns) -> Iterator[RowBatch]:
    """The rows of a file; an empty id, an id or a text that is not UTF-8 is null."""
    with CsvReader(uri, columns.text) as (names, records):
        refuse_repeated(uri, names, columns)
        indices = {name: names.index(name) for name in columns.names if name in names}
        number = 1
        for batch in gathered(records, lambda record: sum(map(len, record)), columns.batch_rows):
            for offset, record in enumerate(batch):
                if len(record) != len(names):
                    raise InputError(
                        f"{uri}: row {number + offset} has {len(record)} cells; the header has {len(names)}. "
                        "Quote cells that contain the delimiter"
                    )
            read = {}
            for name, index in indices.items():
                cells = [_cell(record[index]) for record in batch]
                if name in columns.others and None in cells:
                    raise InputError(f"{uri}: column {name!r} holds invalid UTF-8 in row "
                                     f"{number + cells.index(None)}. Write it as UTF-8")  # fmt: skip
                # An empty id counts as missing.
                read[name] = pa.array(
                    [cell or None for cell in cells] if name == columns.id else cells, pa.string()
                )
            yield RowBatch(read, list(range(number, number + len(batch))), names)
            number += len(batch)


class CsvReader:
    """The header and the records of a CSV file, as a context."""

    def __init__(self, uri: str, text_column: str) -> None:
        self.uri, self.text_column = uri, text_column

    def __enter__(self) -> tuple[list[str], Iterator[list[str]]]:
        self.stream = io.TextIOWrapper(
            open_stream(self.uri), encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        lines = iter(self.stream)
        first = next((line for line in lines if line.strip()), "")
        delimiter = self._delimiter(first)
        records = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
        filled = (record for record in records if record)
        return next(filled, []), filled

    def _delimiter(self, line: str) -> str:
        """The delimiter with which the header names the text column; else the one that names most columns."""
        headers = {delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in DELIMITERS}
        return max(
            headers, key=lambda delimiter: (self.text_column in headers[delimiter], len(headers[delimiter]))
        )

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def _cell(text: str) -> str | None:
    return text if text.isascii() or is_unicode(text) else None

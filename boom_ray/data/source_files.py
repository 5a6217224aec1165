"""The files of a source: which of them are read, and how they are opened.

The suffix of a name, in upper or lower case, states format and compression. Components that begin with `_` or
`.` are skipped, as Spark and pyarrow do: they hold unfinished output, records and checksums. All other files
are reported, so that no data is missed without a word.
"""

import csv
import fnmatch
import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal
from urllib.parse import unquote

import pyarrow as pa

from boom_ray import artifacts, storage
from boom_ray.errors import InputError, NotFoundError, first_line

Format = Literal["parquet", "jsonl", "csv", "text"]
SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".xz", ".lzma", ".br", ".snappy", ".lzo", ".z")
OTHER_FORMATS = (".orc", ".avro", ".arrow", ".feather", ".xls", ".xlsx")
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
EXAMPLES = 5
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceFile:
    """A data file.

    Attributes:
        uri: Its URI.
        path: Its path relative to the source; its name if the source is one file.
        format: Its format; None if the suffix of a single file is unknown.
    """

    uri: str
    path: str
    format: Format | None

    @property
    def partition_values(self) -> dict[str, str | None]:
        """Columns that the directories name, as in `lang=en/part-0.parquet`."""
        pairs = [part.partition("=") for part in self.path.split("/")[:-1] if "=" in part]
        return {key: None if value == HIVE_NULL else unquote(value) for key, _, value in pairs if key}


def format_of(name: str) -> Format | None:
    """The format that a file name states; None if it states none, or one that cannot be compressed."""
    stem, compression = _without_compression(name)
    found = SUFFIXES.get(_suffix(stem))
    return None if compression and found == "parquet" else found


def find(uri: str, formats: tuple[Format, ...]) -> list[SourceFile]:
    """The data files of some formats at a URI, sorted by path.

    Args:
        uri: One file, a directory with everything below it, or a pattern of file names (`…/data/nq-*`).

    Raises:
        NotFoundError: if there are none.
        InputError: if there are data files that cannot be read, such as archives, or the URI names a model.
    """
    if storage.is_hub(uri) and not storage.is_hub_dataset(uri):
        raise InputError(f"{uri}: a model of the hub, where data is needed. Write hf://datasets/owner/name")
    if storage.is_file(uri):
        return [SourceFile(uri, storage.name_of(uri), format_of(storage.name_of(uri)))]
    if "*" in storage.name_of(uri):
        root, pattern = storage.parent_of(uri), storage.name_of(uri)
        names = fnmatch.filter(storage.list_names(root), pattern)
    else:
        root, names = uri, list(storage.list_files(uri))
    names = [name for name in names if not _is_hidden(name)]
    files = [SourceFile(storage.join(root, name), name, format_of(name)) for name in names]
    _refuse_unreadable(uri, names)
    wanted = [file for file in files if file.format in formats]
    suffixes = " or ".join(suffix for suffix, kind in SUFFIXES.items() if kind in formats)
    if not wanted:
        present = f"; there are {_examples(names)}" if names else ""
        raise NotFoundError(f"{uri}: no data files{present}. Expected {suffixes} files")
    others = [file.path for file in files if file.format not in formats]
    if others:
        _report(uri, tuple(others))
    return sorted(wanted, key=lambda file: file.path)


def open_stream(uri: str) -> io.BufferedReader:
    """A file as a stream of bytes, decompressed as its name states; each read of the store is 4 MiB."""
    file: pa.NativeFile = storage.open_input(uri)
    _, compression = _without_compression(storage.name_of(uri))
    if compression:
        file = pa.CompressedInputStream(file, compression)
    return io.BufferedReader(file, 1 << 22)


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Turn what libraries raise while a file is read into one sentence that names the file.

    Raises:
        InputError: if the file is damaged.
        NotFoundError: if it does not exist.
        StorageError: if the store fails.
    """
    try:
        with storage.explained(uri):
            try:
                yield
            except OSError as error:
                if error.errno is not None or not storage.is_local(uri):
                    raise
                raise _damaged(uri, error) from error  # arrow's decompressors raise OSError without a number
            except (pa.ArrowException, UnicodeError, csv.Error, EOFError) as error:
                raise _damaged(uri, error) from error
    except RecursionError as error:
        raise InputError(f"{uri}: values are nested too deeply. Flatten them") from error


def _damaged(uri: str, error: Exception) -> InputError:
    form = format_of(storage.name_of(uri)) or "data"
    return InputError(f"{uri}: not a readable {form} file: {first_line(error)}. Write or copy it again")


def _without_compression(name: str) -> tuple[str, str | None]:
    """A name without the suffix of its compression, and that compression."""
    suffix = _suffix(name)
    compression = COMPRESSIONS.get(suffix)
    return (name[: -len(suffix)], compression) if compression else (name, None)


def _suffix(name: str) -> str:
    return "".join(re.findall(r"\.[^./]*$", name)).lower()


def _is_hidden(name: str) -> bool:
    parts = name.split("/")
    return any(part.startswith(("_", ".")) for part in parts) or parts[-1] == artifacts.RECORD


def _refuse_unreadable(uri: str, names: list[str]) -> None:
    found = [name for name in names if _suffix(name) in ARCHIVES + OTHER_FORMATS
             or (_suffix(name) in COMPRESSIONS and format_of(name) is None)]  # fmt: skip
    if found:
        raise InputError(
            f"{uri}: data files that cannot be read: {_examples(found)}. Allowed: {', '.join(SUFFIXES)}, and "
            f"all but parquet also with {', '.join(COMPRESSIONS)}. Convert these files, or move them"
        )


@cache
def _report(uri: str, others: tuple[str, ...]) -> None:
    """Name the files that are not read, once for each source."""
    logger.warning("%s: %d files are not read: %s", uri, len(others), _examples(list(others)))


def _examples(names: list[str]) -> str:
    return ", ".join(names[:EXAMPLES]) + (", …" if len(names) > EXAMPLES else "")

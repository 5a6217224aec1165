"""Download of directories: large files in ranges, several at the same time."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import NamedTuple

from boom_ray.storage.failures import explained
from boom_ray.storage.range_reader import RangeReader
from boom_ray.storage.uri import join

RANGE_BYTES = 16 << 20
NUM_REQUESTS = 16  # at the same time; their answers are all that is in memory


class _Range(NamedTuple):
    name: str
    start: int
    num_bytes: int


def download(source: str, sizes: Mapping[str, int], target: str) -> None:
    """Copy files of a remote directory into a local one.

    Args:
        source: URI of the directory.
        sizes: Bytes of each file, by its path below `source`.
        target: An empty directory.

    Raises:
        StorageError: if a file cannot be read, or has become shorter.
    """
    for name, size in sizes.items():
        path = os.path.join(target, name)
        with explained(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.truncate(size)
    names = [name for name, size in sizes.items() if size]
    with ExitStack() as opened, ThreadPoolExecutor(NUM_REQUESTS) as pool:
        found = pool.map(RangeReader, [join(source, name) for name in names])
        readers = {
            name: opened.enter_context(closing(reader)) for name, reader in zip(names, found, strict=True)
        }
        copies = [
            pool.submit(_copy, readers[part.name], part, os.path.join(target, part.name))
            for part in _ranges(sizes)
        ]
        try:
            for copied in copies:
                copied.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _ranges(sizes: Mapping[str, int]) -> Iterator[_Range]:
    for name, size in sizes.items():
        for start in range(0, size, RANGE_BYTES):
            yield _Range(name, start, min(RANGE_BYTES, size - start))


def _copy(reader: RangeReader, part: _Range, path: str) -> None:
    content = bytearray(part.num_bytes)
    reader.read_into(memoryview(content), part.start)
    with explained(path), open(path, "r+b") as file:
        file.seek(part.start)
        file.write(content)

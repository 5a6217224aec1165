"""Files and directories at URIs: list, read, write, copy and delete."""

import logging
import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor

import pyarrow
import pyarrow.fs
from pyarrow.fs import FileInfo, FileSelector, FileType

from boom_ray.errors import StorageError
from boom_ray.storage import conditional
from boom_ray.storage.failures import explained
from boom_ray.storage.filesystems import filesystem
from boom_ray.storage.output_stream import OutputStream
from boom_ray.storage.uri import is_hub, is_local, join, without_credentials

NUM_COPIES = 4  # files of a tree that are copied at the same time
COPIED_BYTES = 8 << 20
logger = logging.getLogger(__name__)


def exists(uri: str) -> bool:
    """Whether a file, a directory or any object under a prefix exists."""
    fs, path = filesystem(uri)
    with explained(uri):
        return fs.get_file_info(path).type != FileType.NotFound


def is_file(uri: str) -> bool:
    """Whether a file or an object exists at `uri`."""
    fs, path = filesystem(uri)
    with explained(uri):
        return fs.get_file_info(path).type == FileType.File


def list_files(uri: str) -> dict[str, FileInfo]:
    """All files below a directory by their relative path, sorted. Empty if the directory does not exist."""
    path, infos = _list(uri, recursive=True)
    found = {info.path[len(path) :].lstrip("/"): info for info in infos if info.type == FileType.File}
    return dict(sorted(found.items()))


def list_names(uri: str) -> list[str]:
    """The names directly below a directory, sorted. Empty if the directory does not exist."""
    _, infos = _list(uri, recursive=False)
    return sorted(info.base_name for info in infos)


def _list(uri: str, recursive: bool) -> tuple[str, list[FileInfo]]:
    fs, path = filesystem(uri)
    selector = FileSelector(path, recursive=recursive, allow_not_found=True)
    with explained(uri):
        try:
            return path, fs.get_file_info(selector)
        except FileNotFoundError:  # created between two calls of arrow
            return path, fs.get_file_info(selector)


def open_input(uri: str) -> pyarrow.NativeFile:
    """Open a file for random access reads (`read_at`), local or remote."""
    fs, path = filesystem(uri)
    with explained(uri):
        return fs.open_input_file(path)


def open_output(uri: str) -> OutputStream:
    """Open a file for sequential writing, and create its directory.

    Raises:
        StorageError: if it cannot be written.
    """
    if is_hub(uri):
        raise StorageError(f"{uri}: the hub is only read from here. Write to a directory or a store")
    fs, path = filesystem(uri)
    with explained(uri):
        if is_local(uri):  # a store has no directories: its client would write markers and request the bucket
            fs.create_dir(os.path.dirname(path), recursive=True)
        return OutputStream(fs.open_output_stream(path))


def read_bytes(uri: str) -> bytes:
    """The whole content of a small file."""
    with explained(uri), open_input(uri) as file:
        return file.read(file.size())


def write_bytes(uri: str, content: bytes) -> None:
    """Replace a small file in one step: readers see the old content or the new, never a part of it."""
    if not is_local(uri):
        with explained(uri), open_output(uri) as file:
            file.write(content)
        return
    with explained(uri):
        os.makedirs(os.path.dirname(uri), exist_ok=True)
        temporary = f"{uri}.{os.getpid()}.tmp"
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, uri)


def create(uri: str, content: bytes) -> bool:
    """Write a small file in one step unless it exists.

    Exactly one of several writers succeeds, except on an object store without conditional writes (see
    `conditional`): there it is checked before and after the write, and two at once can both succeed.

    Returns:
        Whether this call created the file.
    """
    if not is_local(uri):
        try:
            with explained(uri):
                return conditional.create(uri, content)
        except conditional.NotConditional:
            _warn_of_two_writers(uri)
            return _create_checked(uri, content)
    temporary = f"{uri}.{os.getpid()}-{uuid.uuid4().hex[:8]}.new"
    write_bytes(temporary, content)
    with explained(uri):
        try:
            os.link(temporary, uri)
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
    return True


def _warn_of_two_writers(uri: str) -> None:
    logger.warning(
        "%s: written without a condition, so that of two commands at the same moment both can succeed. %s",
        without_credentials(uri),
        "Set the credentials in the environment, on a store with conditional writes",
    )


def _create_checked(uri: str, content: bytes) -> bool:
    if is_file(uri):
        return False
    write_bytes(uri, content)
    return read_bytes(uri) == content


def copy_tree(source: str, target: str) -> None:
    """Copy every file below `source` to the same path below `target`; either may be remote."""
    pool = ThreadPoolExecutor(NUM_COPIES)
    names = list_files(source)
    try:
        for copied in [pool.submit(_copy_file, join(source, name), join(target, name)) for name in names]:
            copied.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _copy_file(source: str, target: str) -> None:
    fs, path = filesystem(source)
    with explained(source):
        reader = fs.open_input_stream(path)
    with reader, explained(target), open_output(target) as writer:
        while piece := _read(reader, source):
            writer.write(piece)


def _read(reader: pyarrow.NativeFile, uri: str) -> bytes:
    with explained(uri):
        return reader.read(COPIED_BYTES)


def delete_file(uri: str) -> None:
    """Delete one file."""
    fs, path = filesystem(uri)
    with explained(uri):
        fs.delete_file(path)


def delete_tree(uri: str) -> None:
    """Delete a directory and everything below it, if it exists."""
    if is_local(uri):
        shutil.rmtree(uri, ignore_errors=True)
        return
    fs, path = filesystem(uri)
    with explained(uri):
        if fs.get_file_info(path).type != FileType.NotFound:
            fs.delete_dir(path)

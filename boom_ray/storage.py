"""URIs: the only file that knows schemes.

A location is a `str`: an absolute local path or `s3://bucket/prefix` (`gs://`, `abfss://` likewise, through
`pyarrow.fs`), never a `Path`, which folds the two slashes of a scheme into one. `FileSystem.from_uri` reads
credentials and `AWS_ENDPOINT_URL` from the environment, as every AWS tool does.
"""

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pyarrow.fs
import xxhash
from pyarrow.fs import FileSelector, FileSystem, FileType

from boom_ray.errors import BoomError

HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md", "LICENSE*"]


def is_local(uri: str) -> bool:
    """Whether `uri` names a path on this machine."""
    return "://" not in uri


def is_hub(uri: str) -> bool:
    """Whether `uri` names a repository of the Hugging Face hub."""
    return uri.startswith("hf://")


def absolute(uri: str, base: str | None = None) -> str:
    """Resolve `~` and relative local paths against `base` (default: the working directory).

    Workers run in working directories of their own, so every URI is made absolute where it enters.

    Raises:
        BoomError: if the URI holds a secret.
    """
    if not is_local(uri):
        if urlsplit(uri).password is not None:
            raise BoomError(
                f"{uri.split('://')[0]}://…: a secret in a URI ends in logs and records. "
                "Give it in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
            )
        return uri.rstrip("/")
    return os.path.normpath(os.path.join(base or os.getcwd(), os.path.expanduser(uri)))


def join(uri: str, *parts: str) -> str:
    """Append path components to a URI."""
    return "/".join([uri.rstrip("/"), *parts])


def name_of(uri: str) -> str:
    """The last path component of a URI."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def parent_of(uri: str) -> str:
    """A URI without its last path component."""
    return uri.rstrip("/").rpartition("/")[0]


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what a filesystem raises into one sentence that names the location."""
    try:
        yield
    except FileNotFoundError as error:
        raise BoomError(
            f"{uri}: not found. Check the path; a hub model is written hf://owner/name"
        ) from error
    except (PermissionError, OSError) as error:
        reason = os.strerror(error.errno) if error.errno else str(error).split(". Detail:")[0]
        remedy = "Free some, and run" if error.errno == errno.ENOSPC else "Run"
        raise BoomError(f"{uri}: storage failed: {reason}. {remedy} the command again") from error


def filesystem(uri: str) -> tuple[FileSystem, str]:
    """The `pyarrow` filesystem behind a URI, and the path within it.

    Raises:
        BoomError: if the scheme is unknown or the credentials cannot be resolved.
    """
    if is_local(uri):
        return pyarrow.fs.LocalFileSystem(), absolute(uri)
    try:
        found, path = FileSystem.from_uri(uri)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise BoomError(
            f"{uri}: cannot be opened: {error}. Allowed: a local path, s3://, gs://, abfss://"
        ) from error
    return found, path.rstrip("/")


def exists(uri: str) -> bool:
    """Whether a file, a directory or any object under a prefix is there."""
    fs, path = filesystem(uri)
    with explained(uri):
        return fs.get_file_info(path).type != FileType.NotFound


def is_file(uri: str) -> bool:
    """Whether `uri` names a file or an object."""
    fs, path = filesystem(uri)
    with explained(uri):
        return fs.get_file_info(path).type == FileType.File


def list_files(uri: str) -> dict[str, pyarrow.fs.FileInfo]:
    """All files below a directory, by their path relative to it, sorted. Empty if the directory is absent."""
    path, infos = _list(uri, recursive=True)
    found = {info.path[len(path) :].lstrip("/"): info for info in infos if info.type == FileType.File}
    return dict(sorted(found.items()))


def list_names(uri: str) -> list[str]:
    """The names directly below a directory, sorted. Empty if the directory is absent."""
    _, infos = _list(uri, recursive=False)
    return sorted(info.base_name for info in infos)


def _list(uri: str, recursive: bool) -> tuple[str, list[pyarrow.fs.FileInfo]]:
    fs, path = filesystem(uri)
    selector = FileSelector(path, recursive=recursive, allow_not_found=True)
    with explained(uri):
        try:
            return path, fs.get_file_info(selector)
        except FileNotFoundError:  # it came into being between two looks of arrow
            return path, fs.get_file_info(selector)


def open_input(uri: str) -> pyarrow.NativeFile:
    """Open a file for random access reads (`read_at`), local or remote."""
    fs, path = filesystem(uri)
    with explained(uri):
        return fs.open_input_file(path)


class RangeReader:
    """Reads ranges of one file into memory of the caller's, from any number of threads at once."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._remote = None if is_local(uri) else open_input(uri)
        with explained(uri):
            self._descriptor = os.open(uri, os.O_RDONLY) if is_local(uri) else -1

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` with the bytes from `offset` on.

        Raises:
            BoomError: if the file ends before, or cannot be read.
        """
        with explained(self.uri):
            done = 0
            while done < len(target):
                if self._remote is None:
                    count = os.preadv(self._descriptor, [target[done:]], offset + done)
                else:
                    content = self._remote.read_at(len(target) - done, offset + done)
                    count = len(content)
                    target[done : done + count] = content
                if not count:
                    raise BoomError(f"{self.uri}: ends before byte {offset + len(target)}. Fetch it again")
                done += count

    def close(self) -> None:
        """Close the file."""
        if self._remote is not None:
            self._remote.close()
        elif self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_output(uri: str) -> pyarrow.NativeFile:
    """Open a file for sequential writing; its directory is made first."""
    fs, path = filesystem(uri)
    with explained(uri):
        fs.create_dir(os.path.dirname(path), recursive=True)
        return fs.open_output_stream(path)


def read_bytes(uri: str) -> bytes:
    """The whole content of a small file."""
    with open_input(uri) as file:
        return file.read(file.size())


def write_bytes(uri: str, content: bytes) -> None:
    """Replace a small file in one step: a reader sees the old content or the new, never a part."""
    if not is_local(uri):
        with open_output(uri) as file:
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
    """Write a small file unless it is there already, all at once.

    An object store is asked before and after; of two writers at one moment both can still be told yes.

    Returns:
        Whether this call made it.
    """
    if not is_local(uri):
        if is_file(uri):
            return False
        write_bytes(uri, content)
        return read_bytes(uri) == content
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


def copy_tree(source: str, target: str) -> None:
    """Copy every file below `source` to below `target`; either side may be remote."""
    (source_fs, source_path), (target_fs, target_path) = filesystem(source), filesystem(target)
    with explained(target):
        target_fs.create_dir(target_path, recursive=True)
        pyarrow.fs.copy_files(source_path, target_path, source_fs, target_fs)


def delete_file(uri: str) -> None:
    """Delete one file."""
    fs, path = filesystem(uri)
    with explained(uri):
        fs.delete_file(path)


def delete_tree(uri: str) -> None:
    """Delete a directory and all below it; nothing happens if it is absent."""
    if is_local(uri):
        shutil.rmtree(uri, ignore_errors=True)
        return
    fs, path = filesystem(uri)
    with explained(uri):
        if fs.get_file_info(path).type != FileType.NotFound:
            fs.delete_dir(path)


def _cache_directory() -> str:
    root = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    return os.path.join(root, "boom-ray")


def local_directory(uri: str) -> str:
    """A local directory with the content of `uri`, for libraries that read only local paths.

    A local path is returned as it is, `hf://owner/name[@revision]` through the hub's own cache, and
    anything else is copied once per machine into a cache whose key covers the listing (path, size, time) of
    the source.

    Raises:
        BoomError: if there is nothing at `uri`.
    """
    if is_hub(uri):
        from huggingface_hub import snapshot_download

        repository, _, revision = uri.removeprefix("hf://").partition("@")
        return snapshot_download(repository, revision=revision or None, allow_patterns=HUB_FILES)
    if is_local(uri):
        if not os.path.isdir(uri):
            raise BoomError(
                f"{uri}: no such directory. Check the path; a hub model is written hf://owner/name"
            )
        return uri
    files = list_files(uri)
    if not files:
        raise BoomError(f"{uri}: nothing there. Check the bucket and the prefix")
    listing = repr([uri, [(name, info.size, info.mtime_ns) for name, info in files.items()]])
    cached = os.path.join(_cache_directory(), xxhash.xxh3_128_hexdigest(listing.encode()), name_of(uri))
    if not os.path.isdir(cached):
        os.makedirs(os.path.dirname(cached), exist_ok=True)
        partial = tempfile.mkdtemp(dir=os.path.dirname(cached))
        copy_tree(uri, partial)
        try:
            os.rename(partial, cached)
        except OSError:  # another process on this machine finished the same copy first
            shutil.rmtree(partial)
    return cached

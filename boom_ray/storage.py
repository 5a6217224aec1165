"""Storage by URI: the only file that knows schemes.

A URI is a `str`: an absolute local path, `s3://bucket/prefix` (`gs://`, `abfss://` likewise, through
`pyarrow.fs`), or `hf://owner/name[@revision]` for a model on the Hugging Face hub. It is never a `Path`,
which merges the two slashes of a scheme into one. `FileSystem.from_uri` reads credentials and
`AWS_ENDPOINT_URL` from the environment, as every AWS tool does.
"""

import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pyarrow.fs
import xxhash
from pyarrow.fs import FileSelector, FileSystem, FileType

from boom_ray.errors import InputError, NotFoundError, StorageError

HUB = "hf://"
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md", "LICENSE*"]


def is_local(uri: str) -> bool:
    """Whether `uri` is a path on this machine."""
    return "://" not in uri


def is_hub(uri: str) -> bool:
    """Whether `uri` names a repository on the Hugging Face hub."""
    return uri.startswith(HUB)


def hub_uri(repository: str) -> str:
    """The URI of a repository `owner/name[@revision]` on the hub."""
    return HUB + repository


def hub_name(uri: str) -> tuple[str, str | None]:
    """The repository `owner/name` and the revision (None: the default branch) of a hub URI."""
    repository, _, revision = uri.removeprefix(HUB).partition("@")
    return repository, revision or None


def without_scheme(uri: str) -> str:
    """A URI from its bucket or owner on; a local path unchanged."""
    return uri.rpartition("://")[2]


def without_credentials(uri: str) -> str:
    """A URI without a user name and password, for records and logs."""
    return uri if is_hub(uri) else re.sub("//[^/]*@", "//", uri)  # on the hub, `@` precedes a revision


def absolute(uri: str, base: str | None = None) -> str:
    """Resolve `~` and relative paths against `base`, local or remote (default: the working directory).

    Workers run in other working directories, so callers make every URI absolute where it enters the program.

    Raises:
        InputError: if the URI contains a password.
    """
    if not is_local(uri):
        if urlsplit(uri).password is not None:
            raise InputError(
                f"{uri.split('://')[0]}://…: a password in a URI ends up in logs and records. "
                "Set it in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
            )
        return uri.rstrip("/")
    expanded = os.path.expanduser(uri)
    if base and not is_local(base) and not os.path.isabs(expanded):
        return join(base, os.path.normpath(expanded))
    return os.path.normpath(os.path.join(base or os.getcwd(), expanded))


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
    """Turn an exception of a filesystem into one sentence that names the URI.

    Raises:
        NotFoundError: if the file or directory does not exist.
        StorageError: if the storage fails otherwise.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{uri}: not found. Check the path; a hub model is written hf://owner/name"
        ) from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).split(". Detail:")[0]
        remedy = "Free some space, and run" if error.errno == errno.ENOSPC else "Run"
        raise StorageError(f"{uri}: storage failed: {reason}. {remedy} the command again") from error


def filesystem(uri: str) -> tuple[FileSystem, str]:
    """The `pyarrow` filesystem of a URI, and the path within it.

    Raises:
        StorageError: if the scheme is unknown or the credentials cannot be resolved.
    """
    if is_local(uri):
        return pyarrow.fs.LocalFileSystem(), absolute(uri)
    try:
        found, path = FileSystem.from_uri(uri)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise StorageError(
            f"{uri}: cannot be opened: {error}. Allowed: a local path, s3://, gs://, abfss://"
        ) from error
    return found, path.rstrip("/")


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


def list_files(uri: str) -> dict[str, pyarrow.fs.FileInfo]:
    """All files below a directory by their relative path, sorted. Empty if the directory does not exist."""
    path, infos = _list(uri, recursive=True)
    found = {info.path[len(path) :].lstrip("/"): info for info in infos if info.type == FileType.File}
    return dict(sorted(found.items()))


def list_names(uri: str) -> list[str]:
    """The names directly below a directory, sorted. Empty if the directory does not exist."""
    _, infos = _list(uri, recursive=False)
    return sorted(info.base_name for info in infos)


def _list(uri: str, recursive: bool) -> tuple[str, list[pyarrow.fs.FileInfo]]:
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


class RangeReader:
    """Reads ranges of one file into buffers of the caller, from any number of threads at once."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._remote = None if is_local(uri) else open_input(uri)
        with explained(uri):
            self._descriptor = os.open(uri, os.O_RDONLY) if is_local(uri) else -1

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` with the bytes from `offset` on.

        Raises:
            StorageError: if the file ends too early, or cannot be read.
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
                    raise StorageError(f"{self.uri}: ends before byte {offset + len(target)}. Fetch it again")
                done += count

    def close(self) -> None:
        """Close the file."""
        if self._remote is not None:
            self._remote.close()
        elif self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_output(uri: str) -> pyarrow.NativeFile:
    """Open a file for sequential writing, and create its directory."""
    fs, path = filesystem(uri)
    with explained(uri):
        fs.create_dir(os.path.dirname(path), recursive=True)
        return fs.open_output_stream(path)


def read_bytes(uri: str) -> bytes:
    """The whole content of a small file."""
    with open_input(uri) as file:
        return file.read(file.size())


def write_bytes(uri: str, content: bytes) -> None:
    """Replace a small file in one step: readers see the old content or the new, never a part of it."""
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
    """Write a small file in one step unless it exists.

    On a local filesystem exactly one of several writers succeeds. An object store is checked before and after
    the write, so that two concurrent writers can both succeed there.

    Returns:
        Whether this call created the file.
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
    """Copy every file below `source` to the same path below `target`; either may be remote."""
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
    """Delete a directory and everything below it, if it exists."""
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

    A local path is returned as it is. A hub repository comes from the hub's own cache. Anything else is
    copied once per machine into a cache whose key covers the listing (path, size, time) of the source.

    Raises:
        NotFoundError: if nothing exists at `uri`, or the hub does not provide it.
        StorageError: if the copy fails.
    """
    if is_hub(uri):
        from huggingface_hub import snapshot_download

        repository, revision = hub_name(uri)
        try:
            return snapshot_download(repository, revision=revision, allow_patterns=HUB_FILES)
        except (OSError, ValueError) as error:  # the hub's own errors are subclasses of these
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise NotFoundError(
                f"{uri}: the hub does not provide it: {reason}. Check name, revision and network"
            ) from error
    if is_local(uri):
        if not os.path.isdir(uri):
            raise NotFoundError(
                f"{uri}: no such directory. Check the path; a hub model is written hf://owner/name"
            )
        return uri
    files = list_files(uri)
    if not files:
        raise NotFoundError(f"{uri}: contains no files. Check the bucket and the prefix")
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

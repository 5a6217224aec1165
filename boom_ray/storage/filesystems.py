"""The `pyarrow` filesystem of a URI.

Credentials, region and `AWS_ENDPOINT_URL` come from the environment, as every tool of the stores reads them:
`FileSystem.from_uri` does so for the URI of the bucket. The key never passes through it, since it would be
percent-decoded there.
"""

import queue
import threading

from pyarrow.fs import FileSystem, FileType, FSSpecHandler, LocalFileSystem, PyFileSystem

from boom_ray.errors import NotFoundError, StorageError
from boom_ray.storage import uri as uris
from boom_ray.storage.failures import explained, is_lasting, no_answer, no_bucket
from boom_ray.storage.hub_failures import HUB_FORMS

SECONDS_OF_RETRIES = 20  # waits come on top; Google's client would go on for 15 minutes
SECONDS_TO_ANSWER = 50.0  # clients wait 2 to 4 minutes for a server that accepts connections and is silent
_answered: set[str] = set()  # buckets that this process has reached


def filesystem(uri: str) -> tuple[FileSystem, str]:
    """The `pyarrow` filesystem of a URI, and the path within it.

    Raises:
        InputError: if the URI contains a secret.
        StorageError: if the scheme or an option is unknown, or the credentials cannot be resolved.
    """
    if uris.is_local(uri):
        return LocalFileSystem(), uris.absolute(uri)
    if uris.is_hub(uri):
        return _hub_filesystem(uri)
    parts = uris.parse(uri)
    if parts.store is None or not parts.authority:
        allowed = ", ".join(["a local path", *uris.FORMS.values()])
        raise StorageError(f"{uri}: no bucket of a store. Allowed: {allowed}")
    uris.refuse_secrets(uri)
    bucket = parts._replace(key="")
    with explained(uri):
        found, root = FileSystem.from_uri(str(_with_deadline(bucket)))
    root = root.rstrip("/")
    if str(bucket) not in _answered:
        _check_answers(uri, found, root)
        _answered.add(str(bucket))
    return found, "/".join(filter(None, [root, parts.key.rstrip("/")]))


def _hub_filesystem(uri: str) -> tuple[FileSystem, str]:
    from huggingface_hub import HfFileSystem

    hub, path = HfFileSystem(), uri.removeprefix(uris.HUB).rstrip("/")
    with explained(uri):
        try:
            hub.resolve_path(path)  # without it, an unknown repository is listed as an empty one
        except ValueError as error:
            raise NotFoundError(f"{uri}: it is not the name of a repository. {HUB_FORMS}") from error
    return PyFileSystem(FSSpecHandler(hub)), path


def _check_answers(uri: str, fs: FileSystem, bucket: str) -> None:
    """Raise an error if a store does not answer in time, knows no user, or has no such bucket.

    A missing bucket would look like an empty one. Other errors are left to what is read or written: a user
    may be forbidden to see a bucket, but permitted to read objects in it.
    """
    parts = uris.parse(uri)
    # Without credentials, Azure's client ends the process at a request for a container.
    path = f"{bucket}/{parts.key or 'any'}" if parts.store == "abfss" else bucket
    answers: queue.Queue[FileType | Exception] = queue.Queue()

    def request() -> None:
        try:
            answers.put(fs.get_file_info(path).type)
        except Exception as error:
            answers.put(error)

    threading.Thread(target=request, daemon=True).start()
    try:
        answer = answers.get(timeout=SECONDS_TO_ANSWER)
    except queue.Empty:
        raise no_answer(uri, SECONDS_TO_ANSWER) from None
    if isinstance(answer, Exception):
        if is_lasting(uri, answer):
            with explained(uri):
                raise answer
    elif path == bucket and answer == FileType.NotFound and "allow_bucket_creation=" not in parts.options:
        raise no_bucket(uri)


def _with_deadline(root: uris.RemoteUri) -> uris.RemoteUri:
    """The URI of a bucket with a limit of the time for which requests are repeated."""
    if root.store != "gs" or "retry_limit_seconds=" in root.options:
        return root
    limit = f"retry_limit_seconds={SECONDS_OF_RETRIES}"
    return root._replace(options="&".join(filter(None, [root.options, limit])))

"""The `pyarrow` filesystem of a URI.

Credentials, region and `AWS_ENDPOINT_URL` come from the environment, as every tool of the stores reads them:
`FileSystem.from_uri` does so for the URI of the bucket. The key never passes through it, since it would be
percent-decoded there.
"""

from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem

from boom_ray.errors import StorageError
from boom_ray.storage import uri as uris
from boom_ray.storage.failures import explained

SECONDS_OF_RETRIES = 45  # Google's client would go on for 15 minutes


def filesystem(uri: str) -> tuple[FileSystem, str]:
    """The `pyarrow` filesystem of a URI, and the path within it.

    Raises:
        InputError: if the URI contains a secret.
        StorageError: if the scheme or an option is unknown, or the credentials cannot be resolved.
    """
    if uris.is_local(uri):
        return LocalFileSystem(), uris.absolute(uri)
    if uris.is_hub(uri):
        from huggingface_hub import HfFileSystem

        return PyFileSystem(FSSpecHandler(HfFileSystem())), uri.removeprefix(uris.HUB).rstrip("/")
    parts = uris.parse(uri)
    if parts.store is None:
        raise StorageError(
            f"{uri}: {parts.scheme} is no scheme of a store. Allowed: a local path, {uris.ALLOWED}"
        )
    uris.refuse_secrets(uri)
    with explained(uri):
        found, root = FileSystem.from_uri(str(_with_deadline(parts._replace(key=""))))
    return found, "/".join(filter(None, [root.rstrip("/"), parts.key.rstrip("/")]))


def _with_deadline(root: uris.RemoteUri) -> uris.RemoteUri:
    """The URI of a bucket with a limit of the time for which requests are repeated."""
    if root.store != "gs" or "retry_limit_seconds=" in root.options:
        return root
    limit = f"retry_limit_seconds={SECONDS_OF_RETRIES}"
    return root._replace(options="&".join(filter(None, [root.options, limit])))

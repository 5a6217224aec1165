"""Objects that exactly one of several writers creates, by the conditional writes of S3, GCS and Azure.

`pyarrow`, the client of everything else, has none; `obstore` has, and reads the same variables of the
environment. It does not know the profiles of AWS's configuration files, nor what a logged-in user of Azure's
or Google's tools has beyond them.
"""

import functools
import os
import time
from typing import TYPE_CHECKING, Any

from boom_ray.storage import uri as uris
from boom_ray.storage.uri import RemoteUri

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SECONDS_OF_RETRIES = 20
FROM_ENVIRONMENT = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
AZURE_FROM_ENVIRONMENT = ("AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE")
PREFIXES = ("AWS_", "AZURE_", "GOOGLE_")  # of the variables that the clients read


class NotConditional(Exception):
    """The store, or the way in which its user is known, has no conditional writes here."""


def create(uri: str, content: bytes) -> bool:
    """Write an object unless there is one.

    Returns:
        Whether this call created it.

    Raises:
        NotConditional: if that cannot be decided by the store.
        OSError: if it does not answer, or has a fault of its own.
    """
    from obstore import exceptions, get, put

    parts = uris.parse(uri)
    variables = tuple(sorted(item for item in os.environ.items() if item[0].startswith(PREFIXES)))
    try:
        store = _store(parts._replace(key=""), variables)
    except exceptions.BaseError as error:  # of its configuration
        raise NotConditional from error
    deadline, is_first = time.monotonic() + SECONDS_OF_RETRIES, True
    while True:
        try:
            put(store, parts.key, content, mode="create", use_multipart=False)
            return True
        except exceptions.AlreadyExistsError:
            # If an earlier answer was lost, the object may be of this call.
            return not is_first and bytes(get(store, parts.key).bytes()) == content
        except exceptions.GenericError as error:
            if _is_unsupported(error):
                raise NotConditional from error
            # Another client would not know whether an earlier request has created the object.
            if time.monotonic() > deadline:
                raise OSError(str(error)) from error
            is_first = False
            time.sleep(1)
        except (exceptions.BaseError, ValueError) as error:  # also a key that it cannot write
            raise NotConditional from error


def _is_unsupported(error: Exception) -> bool:
    return any(words in str(error) for words in ("501 Not Implemented", "NotImplemented"))


@functools.lru_cache(maxsize=16)
def _store(bucket: RemoteUri, variables: tuple[tuple[str, str], ...]) -> "ObjectStore":
    """The client of a bucket.

    It opens a connection for each request. They are few and hours apart, and on one that something between
    has dropped in silence a request would wait for its timeout.

    Args:
        variables: Those of the environment that it reads, since tests and long processes change them.

    Raises:
        NotConditional: if its user is known in a way that `obstore` does not read, or it has unusual options.
    """
    from obstore.store import AzureStore, GCSStore, S3Store

    client: Any = {"pool_max_idle_per_host": "0"}
    retries: Any = {"max_retries": 0}  # an answer that was lost is handled by `create`
    options = dict(option.split("=", 1) for option in bucket.options.split("&") if option)
    user, _, place = bucket.authority.rpartition("@")
    environment = dict(variables)
    if bucket.store == "s3" and _reads_s3(options, environment):
        endpoint = options.get("endpoint_override") or environment.get("AWS_ENDPOINT_URL")
        config: Any = {"region": options["region"]} if "region" in options else {}
        if endpoint:
            scheme = options.get("scheme", "https")
            config["endpoint"] = endpoint if "://" in endpoint else f"{scheme}://{endpoint}"
        client["allow_http"] = str(config.get("endpoint", "")).startswith("http://")
        return S3Store(place, config=config, client_options=client, retry_config=retries)
    if bucket.store == "gs" and not user and not options:
        return GCSStore(place, client_options=client, retry_config=retries)
    is_account = not options and place.endswith(".dfs.core.windows.net")
    if bucket.store == "abfss" and is_account and environment.keys() & {*AZURE_FROM_ENVIRONMENT}:
        account = place.partition(".")[0]
        config = {"account_name": account}
        return AzureStore(user, config=config, client_options=client, retry_config=retries)
    raise NotConditional


def _reads_s3(options: dict[str, str], environment: dict[str, str]) -> bool:
    """Whether `obstore` finds the endpoint and the user that `pyarrow` finds."""
    profiles = [environment.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), "~/.aws/config"]
    has_profile = any(os.path.exists(os.path.expanduser(path)) for path in profiles)
    by_machine = not has_profile and "AWS_EC2_METADATA_DISABLED" not in environment
    known = any(environment.get(name) for name in FROM_ENVIRONMENT) or by_machine
    return known and options.keys() <= {"region", "scheme", "endpoint_override"}

"""What stores raise, explained: exceptions of `pyarrow`, the hub and the system become sentences that name
the URI, the cause and the remedy; nothing else in the package does this.

Stores differ in their words and none has error codes in `pyarrow`: causes are found by the text of the
exception. A text that none of them matches is shown as it is.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow

from boom_ray.errors import BoomError, NotFoundError, StorageError
from boom_ray.storage import uri as uris
from boom_ray.storage.hub_failures import first_line, hub_failure

AGAIN = "Run the command again"
CREDENTIALS = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role of this machine",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`; "
    "a public bucket is written gs://anonymous@bucket",
    "abfss": "Set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or run `az login`",
}
ENDPOINT = {
    "s3": "the region (AWS_DEFAULT_REGION or ?region=…) and the endpoint "
    "(AWS_ENDPOINT_URL or ?endpoint_override=…)",
    "gs": "the endpoint (?endpoint_override=…)",
    "abfss": "the name of the account",
}
LOCAL = {
    errno.ENOSPC: "Free some space, and run the command again",
    errno.EDQUOT: "Free some space, and run the command again",
    errno.EACCES: "Permit this user to access it",
    errno.EPERM: "Permit this user to access it",
    errno.EROFS: "Choose a directory that can be written to",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.ENOTDIR: "A part of the path is a file: choose another path",
    errno.EISDIR: "It is a directory: choose a file",
}


@dataclass(frozen=True)
class Cause:
    """A kind of failure of an object store.

    Attributes:
        pattern: Words of one of the stores by which it is known; a group is shown as `{found}`.
        reason: What is wrong, with `{bucket}` and `{found}`.
        remedy: What to do, with `{credentials}` and `{endpoint}`.
        error: The class that is raised.
    """

    pattern: str
    reason: str
    remedy: str
    error: type[BoomError] = StorageError


UNREACHABLE = Cause(
    r"NETWORK_CONNECTION|CURL error|curlCode|resolve host|Fail to get a new connection|UNAVAILABLE"
    r"|DEADLINE_EXCEEDED|timed out|Connection (?:refused|reset)|no answer within (?P<found>\d+)",
    "the store cannot be reached",
    "Check the network, a proxy (HTTPS_PROXY), and {endpoint}",
)
#: The first that matches: a region that does not fit is reported with status 301, or 400 for the credentials.
CAUSES = (
    Cause(
        r"(?:bucket is|located) in '?(?P<found>[\w-]+)|PERMANENT_REDIRECT|HTTP status 301"
        r"|AuthorizationHeaderMalformed",
        "the bucket {bucket} is in another region{found}",
        "Set {endpoint}",
    ),
    Cause(
        r"NO_SUCH_BUCKET|NoSuchBucket|ContainerNotFound|specified (?:bucket|container) does not exist",
        "there is no bucket {bucket}",
        "Create it, or check its name, {endpoint}",
        NotFoundError,
    ),
    Cause(
        r"INVALID_ACCESS_KEY|InvalidAccessKey|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch|UNRECOGNIZED_CLIENT"
        r"|INVALID_CLIENT_TOKEN|InvalidToken|Expired|EXPIRED|MISSING_AUTHENTICATION|UNAUTHENTICATED"
        r"|AuthenticationFailed|AuthenticationException|DefaultAzureCredential|HTTP status 401"
        r"|OAuth2 access token|No credentials",
        "the store has no valid credentials of this user",
        "{credentials}",
    ),
    Cause(
        r"ACCESS_DENIED|AccessDenied|PERMISSION_DENIED|HTTP status 403|Forbidden"
        r"|Authorization(?:Permission|Failure)",
        "access is forbidden",
        "Permit this user to access it, or use others' credentials: {credentials}",
    ),
    Cause(
        r"SLOW_DOWN|SlowDown|SERVICE_UNAVAILABLE|ServerBusy|RESOURCE_EXHAUSTED|INTERNAL|HTTP status 50\d",
        "the store is overloaded or has a fault of its own",
        "Run the command again later",
    ),
    UNREACHABLE,
)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn an exception of a store into one sentence that names the URI, the cause and the remedy.

    Raises:
        NotFoundError: if the file, directory, bucket or repository does not exist.
        StorageError: if the storage fails otherwise.
    """
    try:
        yield
    except BoomError:
        raise
    except Exception as error:
        found = failure(uri, error)
        if found is None:
            raise
        raise found from error


def failure(uri: str, error: Exception) -> BoomError | None:
    """The error to show for an exception of a store; None if a store did not raise it."""
    uri = uris.without_credentials(uri)
    if uris.is_hub(uri):
        return hub_failure(uri, error)
    if not isinstance(error, OSError | pyarrow.ArrowException):
        return None
    if uris.is_local(uri) or getattr(error, "errno", None) not in (None, errno.ENOENT):
        return _local_failure(uri, error)
    return _store_failure(uri, error)


def is_unreachable(uri: str, error: Exception) -> bool:
    """Whether an exception says that a store does not answer."""
    return _match(uri, error)[0] is UNREACHABLE


def _match(uri: str, error: Exception) -> tuple[Cause | None, str]:
    """The cause of a store's exception, and what is found in its text."""
    text = str(error).replace(uris.parse(uri).key or "\0", "")  # a key may contain any word
    for cause in CAUSES:
        if match := re.search(cause.pattern, text):
            return cause, match.groupdict().get("found") or ""
    return None, ""


def _local_failure(uri: str, error: Exception) -> BoomError:
    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        return NotFoundError(f"{uri}: not found. Check the path; a hub model is written {uris.HUB}owner/name")
    reason = os.strerror(number) if number else first_line(error)
    return StorageError(f"{uri}: storage failed: {reason}. {LOCAL.get(number or 0, AGAIN)}")


def _store_failure(uri: str, error: Exception) -> BoomError:
    cause, found = _match(uri, error)
    parts = uris.parse(uri)
    if cause is None and isinstance(error, FileNotFoundError):
        encoded = "; keys are written as the store has them, not %-encoded" * ("%" in uri)
        return NotFoundError(f"{uri}: not found. Check bucket and key{encoded}")
    if cause is None:
        return StorageError(f"{uri}: storage failed: {first_line(error)}. {AGAIN}")
    store = parts.store or "s3"
    reason = cause.reason.format(bucket=parts.authority, found=found and f" ({found})")
    remedy = cause.remedy.format(credentials=CREDENTIALS[store], endpoint=ENDPOINT[store])
    return cause.error(f"{uri}: {reason}: {_detail(error)}. {remedy}")


def _detail(error: Exception) -> str:
    """The last clause of a store's message, which says the most; Google's are wrapped in their retries."""
    text = first_line(error)
    text = text.split(" error_info=")[0].split("with a last message of ")[-1]
    return text.split("; Details: ")[-1].split(" operation: ")[-1]

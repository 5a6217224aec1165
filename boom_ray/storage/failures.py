"""Failures of stores: exceptions of `pyarrow`, the hub and the system become sentences that name
the URI, the cause and the remedy; nothing else in the package does this.

Stores differ in their words, and `pyarrow` has no error codes: causes are found by the text of the exception.
A text that none of them matches is shown as it is.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow

from boom_ray.errors import BoomError, InputError, NotFoundError, StorageError
from boom_ray.storage import uri as uris
from boom_ray.storage.hub_failures import clause, hub_failure

AGAIN = "Run the command again"
CREDENTIALS = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role of this machine",
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
LOCAL_REMEDIES = {
    errno.ENOSPC: "Free some space, and run the command again",
    errno.EDQUOT: "Free some space, and run the command again",
    errno.EACCES: "Permit this user to access it",
    errno.EPERM: "Permit this user to access it",
    errno.EROFS: "Choose a directory that can be written to",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.ENOTDIR: "A part of the path is a file: choose another path",
    errno.EISDIR: "Choose a file",
}


@dataclass(frozen=True)
class Cause:
    """A kind of failure of an object store.

    Attributes:
        pattern: Words of the stores by which it is known.
        reason: What is wrong, with `{bucket}`.
        remedy: What to do, with `{credentials}`, `{endpoint}`, `{form}` and `{options}`.
        error: The class that is raised.
    """

    pattern: str
    reason: str
    remedy: str
    error: type[BoomError] = StorageError


ANOTHER_REGION = Cause(
    r"bucket is located in|PERMANENT_REDIRECT|HTTP status 301"
    r"|AuthorizationHeaderMalformed|AUTHORIZATION_HEADER_MALFORMED",
    "the bucket {bucket} is in another region",
    "Set {endpoint}",
)
NO_BUCKET = Cause(
    r"NO_SUCH_BUCKET|NoSuchBucket|ContainerNotFound|specified (?:bucket|container) does not exist"
    r"|Bucket '[^']*' not found",
    "there is no bucket {bucket}",
    "Create it, or check its name, {endpoint}",
    NotFoundError,
)
NO_CREDENTIALS = Cause(
    r"INVALID_ACCESS_KEY|InvalidAccessKey|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch|UNRECOGNIZED_CLIENT"
    r"|INVALID_CLIENT_TOKEN|InvalidToken|Expired|EXPIRED|MISSING_AUTHENTICATION|UNAUTHENTICATED"
    r"|AuthenticationFailed|AuthenticationException|HTTP status 401|OAuth2 access token|No credentials",
    "the store has no valid credentials of this user",
    "{credentials}",
)
FORBIDDEN = Cause(
    r"ACCESS_DENIED|AccessDenied|PERMISSION_DENIED|HTTP status 403|Forbidden"
    r"|Authorization(?:Permission|Failure)",
    "the store forbids access",
    "Permit this user to access it, or use other credentials. {credentials}",
)
OVERLOADED = Cause(
    r"SLOW_DOWN|SlowDown|SERVICE_UNAVAILABLE|ServerBusy|RESOURCE_EXHAUSTED|INTERNAL|HTTP status 50\d",
    "the store is overloaded or has a fault of its own",
    "Run the command again later",
)
UNREACHABLE = Cause(
    r"NETWORK_CONNECTION|CURL error|curlCode|resolve host|Fail to get a new connection|UNAVAILABLE"
    r"|DEADLINE_EXCEEDED|timed out|Timeout|Connection (?:refused|reset)",
    "the store cannot be reached",
    "Check the network, a proxy (HTTPS_PROXY), {endpoint}",
)
# Without a reason: no credentials, an expired token, or those of another region.
REFUSED = Cause(
    r"HTTP status 4(?:00|12)",
    "the store refuses the request",
    "Check {endpoint}. {credentials}",
)
NO_URI = Cause(
    r"Unexpected query parameter in |Cannot parse URI|Invalid S3 connection scheme"
    r"|Unexpected credential_kind|must(?: not)? be specified|must be a positive"
    r"|valid account name",
    "it is not a URI of this store",
    "Write {form}, with the key as the store has it; after `?` only {options}",
    InputError,
)
EMPTY_NAME = Cause(
    r"Empty path component",
    "keys with two slashes in a row cannot be read",
    "Check the key, or copy the object to another",
    InputError,
)
NO_FILE = Cause(r"Not a regular file", "it is not a file", "Name a file, not a directory", NotFoundError)
#: The first that matches counts: Google's missing credentials are UNAVAILABLE too.
CAUSES = (
    *(ANOTHER_REGION, NO_BUCKET, NO_CREDENTIALS, FORBIDDEN, OVERLOADED, UNREACHABLE),
    *(REFUSED, NO_URI, EMPTY_NAME, NO_FILE),
)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn an exception of a store into one sentence that names the URI, the cause and the remedy.

    Raises:
        NotFoundError: if the file, directory, bucket or repository does not exist.
        InputError: if the URI has an unknown option, or a key that cannot be read.
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
    if uris.is_hub(uri):
        return hub_failure(uri, error)
    if not isinstance(error, OSError | pyarrow.ArrowException):
        return None
    # A file that is copied to or from a store is local.
    if uris.is_local(uri) or getattr(error, "errno", None) not in (None, errno.ENOENT):
        return _local_failure(uris.without_credentials(uri), error)
    return _store_failure(uri, error)


def is_lasting(uri: str, error: Exception) -> bool:
    """Whether an exception says that a store does not answer, or knows no user: it would fail again."""
    return _cause(uri, error) in (UNREACHABLE, NO_CREDENTIALS)


def no_answer(uri: str, seconds: float) -> BoomError:
    """The error for a store that accepts connections and is silent."""
    return _sentence(uri, UNREACHABLE, f"no answer within {seconds:.0f} s")


def no_bucket(uri: str) -> BoomError:
    """The error for a bucket that does not exist."""
    return _sentence(uri, NO_BUCKET)


def _local_failure(uri: str, error: Exception) -> BoomError:
    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        return NotFoundError(f"{uri}: not found. Check the path; a hub model is written {uris.HUB}owner/name")
    reason = os.strerror(number) if number else clause(error)
    return StorageError(f"{uri}: storage failed: {reason}. {LOCAL_REMEDIES.get(number or 0, AGAIN)}")


def _store_failure(uri: str, error: Exception) -> BoomError:
    cause = _cause(uri, error)
    if cause is not None:
        return _sentence(uri, cause, _detail(error))
    shown = uris.without_credentials(uri)
    if isinstance(error, FileNotFoundError):
        encoded = "; keys are written as the store has them, not %-encoded" * ("%" in uri)
        return NotFoundError(f"{shown}: not found. Check bucket and key{encoded}")
    return StorageError(f"{shown}: storage failed: {clause(error)}. {AGAIN}")


def _cause(uri: str, error: Exception) -> Cause | None:
    """The cause of a store's exception by its text."""
    key = re.escape(uris.parse(uri).key)
    text = re.sub(rf"'([^'/]*/)?{key}/?'", "''", str(error)) if key else str(error)  # it may contain any word
    return next((cause for cause in CAUSES if re.search(cause.pattern, text)), None)


def _sentence(uri: str, cause: Cause, detail: str = "") -> BoomError:
    parts = uris.parse(uri)
    store = parts.store or "s3"
    bucket = uris.without_scheme(uris.without_credentials(str(parts._replace(key="", options=""))))
    reason = cause.reason.format(bucket=bucket)
    remedy = cause.remedy.format(
        credentials=CREDENTIALS[store],
        endpoint=ENDPOINT[store],
        form=uris.FORMS[store],
        options=", ".join(uris.OPTIONS[store]),
    )
    detail = f" ({detail})" if detail else ""
    return cause.error(f"{uris.without_credentials(uri)}: {reason}{detail}. {remedy}")


def _detail(error: Exception) -> str:
    """The clause of a store's message that says the most; Google's are wrapped in their retries."""
    text = clause(error).split(" error_info=")[0].split("with a last message of ")[-1]
    text = text.split("; Details: ")[-1].split(" operation: ")[-1].split(" (Request ID")[0].rstrip(".")
    return text.replace("No response body", "")

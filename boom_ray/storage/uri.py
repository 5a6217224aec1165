"""URIs as text: the only module that knows schemes.

A URI is a `str`: an absolute local path, `s3://bucket/key` (`gs://`, `abfss://` likewise),
`hf://owner/name[@revision]` for a model on the Hugging Face hub, or `hf://datasets/owner/name/file`. It is
never a `Path`, which merges the two slashes of a scheme into one.

A key stands in a URI as the store has it: nothing is percent-decoded or encoded, and `#`, `?`, `%` and spaces
are characters like others. Options of a store (`?region=…&endpoint_override=…`) are at the end of a URI and
belong to the store, not to the key: `join`, `name_of` and `parent_of` keep them there. A key that itself
looks as if it ended with options is followed by one more `?`, which is not a part of it.
"""

import os
import re
from typing import NamedTuple
from urllib.parse import parse_qsl

from boom_ray.errors import InputError

HUB = "hf://"
HUB_DATASETS = HUB + "datasets/"
FORMS = {
    "s3": "s3://bucket/key",
    "gs": "gs://bucket/key",
    "abfss": "abfss://container@account.dfs.core.windows.net/key",
}
#: The options that `pyarrow.fs.FileSystem.from_uri` reads, by scheme.
OPTIONS = {
    "s3": (
        *("region", "scheme", "endpoint_override", "allow_delayed_open", "smart_defaults"),
        *("allow_bucket_creation", "allow_bucket_deletion"),
        *("tls_ca_file_path", "tls_ca_dir_path", "tls_verify_certificates"),
    ),
    "gs": ("scheme", "endpoint_override", "retry_limit_seconds", "project_id"),
    "abfss": (
        *("background_writes", "blob_storage_authority", "dfs_storage_authority", "enable_tls"),
        *("credential_kind", "tenant_id", "client_id"),
    ),
}
SYNONYMS = {"s3": "s3", "gs": "gs", "gcs": "gs", "abfs": "abfss", "abfss": "abfss"}
SECRETS = {
    "s3": ("access_key", "secret_key", "session_token"),
    "gs": ("access_token",),
    "abfss": ("account_key", "client_secret", "sas_token", "sig"),
}
ENVIRONMENT = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "abfss": "AZURE_CLIENT_ID, AZURE_TENANT_ID, AZURE_CLIENT_SECRET",
}
_REMOTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)(.*)", re.DOTALL)
_MERGED = re.compile(rf"({'|'.join([*SYNONYMS, 'hf'])}):/+(?!/)")


def _options_of(store: str) -> re.Pattern[str]:
    """Matches `?` and options, of which at least one has a known name: the others are mistyped, not a key."""
    known = "|".join([*OPTIONS[store], *SECRETS[store]])
    return re.compile(rf"\?(?=(?:[^?&]*&)*(?:{known})=)\w+=[^?&]*(?:&\w+=[^?&]*)*\Z")


_OPTIONS = {scheme: _options_of(store) for scheme, store in SYNONYMS.items()}


class RemoteUri(NamedTuple):
    """The parts of a URI of an object store or of the hub.

    Attributes:
        scheme: Such as `s3`.
        authority: The bucket; for Azure `container@account…`; for the hub the owner.
        key: The key or prefix below it, as the store has it, without a slash before it.
        options: `name=value&…`, or empty.
    """

    scheme: str
    authority: str
    key: str
    options: str

    def __str__(self) -> str:
        """The URI as text; `parse` restores the parts from it."""
        key = f"/{self.key}" if self.key else ""
        # A key that looks as if it had options gets one `?` more, which `parse` takes away.
        guard = "?" if not self.options and _ends_with_options(self.scheme, key.rstrip("?")) else ""
        options = f"?{self.options}" if self.options else ""
        return f"{self.scheme}://{self.authority}{key}{guard}{options}"

    @property
    def store(self) -> str | None:
        """`s3`, `gs` or `abfss`; None for the hub and for unknown schemes."""
        return SYNONYMS.get(self.scheme)


def parse(uri: str) -> RemoteUri:
    """The parts of a URI that is not a local path."""
    match = _REMOTE.fullmatch(uri)
    if match is None:
        raise ValueError(f"{uri!r} is a local path")
    scheme, authority, rest = match.groups()
    options = ""
    if scheme in SYNONYMS:
        if rest.endswith("?") and _ends_with_options(scheme, rest.rstrip("?")):
            rest = rest[:-1]
        elif rest.startswith("?"):  # behind a bucket there is no key without a slash
            rest, options = "", rest[1:]
        elif found := _OPTIONS[scheme].search(rest):
            rest, options = rest[: found.start()], found.group()[1:]
    return RemoteUri(scheme, authority, rest[1:] if rest.startswith("/") else rest, options)


def _ends_with_options(scheme: str, text: str) -> bool:
    return scheme in SYNONYMS and _OPTIONS[scheme].search(text) is not None


def is_local(uri: str) -> bool:
    """Whether `uri` is a path on this machine."""
    return _REMOTE.match(uri) is None


def is_hub(uri: str) -> bool:
    """Whether `uri` names a repository on the Hugging Face hub."""
    return uri.startswith(HUB)


def is_hub_dataset(uri: str) -> bool:
    """Whether `uri` names a data set, or files of one, on the Hugging Face hub."""
    return uri.startswith(HUB_DATASETS)


def hub_uri(repository: str) -> str:
    """The URI of a repository `owner/name[@revision]` on the hub."""
    return HUB + repository


def hub_name(uri: str) -> tuple[str, str | None]:
    """The repository `owner/name` and the revision (None: the default branch) of a hub URI."""
    repository, _, revision = uri.removeprefix(HUB).partition("@")
    return repository, revision or None


def without_scheme(uri: str) -> str:
    """A URI from its bucket or owner on, without options; a local path unchanged."""
    if is_local(uri):
        return uri
    parts = parse(uri)
    return f"{parts.authority}/{parts.key}" if parts.key else parts.authority


def without_credentials(uri: str) -> str:
    """A URI without passwords and keys, for records, logs and errors."""
    if is_local(uri) or is_hub(uri):  # on the hub, `@` precedes a revision
        return uri
    parts = parse(uri)
    user, _, place = parts.authority.rpartition("@")
    user = user.partition(":")[0]
    if user and parts.store != "s3":  # the user of Azure's URIs is the container; of `gs`, `anonymous`
        place = f"{user}@{place}"
    # Azure's shared access signature is made of all options.
    return str(parts._replace(authority=place, options="" if _secrets_in(parts) else parts.options))


def absolute(uri: str, base: str | None = None) -> str:
    """Resolve `~` and relative paths against `base`, local or remote (default: the working directory).

    Workers run in other working directories, so callers make every URI absolute where it enters the program.

    Raises:
        InputError: if the URI contains a secret or characters that no name has, or is neither path nor URI.
    """
    _refuse_characters(uri)
    if uri.startswith("file://"):
        uri = _path_of_file_uri(uri)
    if not is_local(uri):
        refuse_secrets(uri)
        parts = parse(uri)
        return str(parts._replace(key=parts.key.rstrip("/")))
    if _MERGED.match(uri):
        raise InputError(f"{uri}: a URI has two slashes after its scheme: {uri.partition(':')[0]}://…")
    expanded = os.path.expanduser(uri)
    if base and not is_local(base) and not os.path.isabs(expanded):
        return join(base, os.path.normpath(expanded))
    return os.path.normpath(os.path.join(base or os.getcwd(), expanded))


def _refuse_characters(uri: str) -> None:
    if "\0" in uri:
        raise InputError(f"{uri!r}: a path cannot contain a null character. Check how the path was made")
    try:
        uri.encode()
    except UnicodeEncodeError as error:  # from an argument that is not UTF-8, or half of a surrogate pair
        raise InputError(f"{uri!r}: a path must be valid Unicode, as UTF-8. Rename the file") from error


def _path_of_file_uri(uri: str) -> str:
    path = uri.removeprefix("file://")
    if not path.startswith("/") or "%" in path:
        raise InputError(f"{uri}: write a local path without a scheme, such as /data/rows.jsonl")
    return path


def refuse_secrets(uri: str) -> None:
    """Check that a URI of a store contains no password and no access key.

    Raises:
        InputError: if it does; the message does not repeat it.
    """
    parts = parse(uri)
    if is_hub(uri):
        return
    user, separator, _ = parts.authority.rpartition("@")
    store = parts.store or "s3"
    names = _secrets_in(parts)
    if ":" in user or (separator and store == "s3") or names:
        what = f"the option {names[0]}" if names else "a password or an access key"
        raise InputError(
            f"{parts.scheme}://…: {what} in a URI ends up in logs and records. "
            f"Set it in the environment ({ENVIRONMENT[store]})"
        )


def _secrets_in(parts: RemoteUri) -> list[str]:
    return [name for name, _ in parse_qsl(parts.options) if name in SECRETS[parts.store or "s3"]]


def join(uri: str, *parts: str) -> str:
    """Append path components to a URI, before its options."""
    if is_local(uri):
        return "/".join([uri.rstrip("/"), *parts])
    found = parse(uri)
    return str(found._replace(key="/".join(filter(None, [found.key.rstrip("/"), *parts]))))


def name_of(uri: str) -> str:
    """The last path component of a URI, without options."""
    return without_scheme(uri).rstrip("/").rsplit("/", 1)[-1]


def parent_of(uri: str) -> str:
    """A URI without its last path component, but with its options."""
    if is_local(uri):
        return uri.rstrip("/").rpartition("/")[0] or "/" * uri.startswith("/")
    parts = parse(uri)
    return str(parts._replace(key=parts.key.rstrip("/").rpartition("/")[0]))

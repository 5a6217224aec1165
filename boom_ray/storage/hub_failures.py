"""Failures of the client of the Hugging Face hub."""

from boom_ray.errors import BoomError, NotFoundError, StorageError, first_line

HUB_FORMS = "Write hf://owner/name, hf://owner/name@revision, or hf://datasets/owner/name"
OFFLINE = "Unset HF_HUB_OFFLINE, download it first, or name a local directory"
NETWORK = "Check the network, a proxy (HTTPS_PROXY), and HF_ENDPOINT; or name a local directory"
#: Reason and remedy by the name of the exception's class, the most special first: importing the classes takes
#: a second.
CAUSES = {
    "GatedRepoError": (
        "its owner grants access on request",
        "Ask for it on the page of the repository, and set HF_TOKEN",
    ),
    "RevisionNotFoundError": ("the repository has no such revision", "Check what follows @"),
    "RepositoryNotFoundError": (
        "the hub has no such repository, or it is private",
        f"Check owner and name, and set HF_TOKEN for a private one. {HUB_FORMS}",
    ),
    "OfflineModeIsEnabled": ("HF_HUB_OFFLINE forbids to reach the hub", OFFLINE),
    "LocalEntryNotFoundError": (
        "it is not in the cache of this machine, and the hub cannot be reached or HF_HUB_OFFLINE forbids it",
        f"{OFFLINE}. {HUB_FORMS}",
    ),
    "EntryNotFoundError": ("the repository has no such file", "Check the path"),
    "HFValidationError": ("it is not the name of a repository", HUB_FORMS),
    "HfUriError": ("it is not the name of a repository", HUB_FORMS),
    "HfHubHTTPError": ("the hub refuses the request", "Check HF_TOKEN and HF_ENDPOINT"),
    "HTTPError": ("the hub cannot be reached", NETWORK),
    "ConnectionError": ("the hub cannot be reached", NETWORK),
    "TimeoutError": ("the hub cannot be reached", NETWORK),
    "FileNotFoundError": (
        "the hub has no such repository or file",
        f"Check owner, name and path. {HUB_FORMS}",
    ),
}
UNREACHABLE = ("HfHubHTTPError", "HTTPError", "ConnectionError", "TimeoutError")


def hub_failure(uri: str, error: Exception) -> BoomError | None:
    """The error to show for an exception of the hub's client; None if it did not raise it."""
    # The hub's filesystem raises FileNotFoundError from what happened.
    kinds = [kind for one in (error.__cause__, error) for kind in type(one).__mro__]
    names = [kind.__name__ for kind in kinds]
    known = next((name for name in CAUSES if name in names), None)
    if known is None:
        if not isinstance(error, OSError):
            return None
        return StorageError(f"{uri}: {clause(error)}. Run the command again")
    reason, remedy = CAUSES[known]
    if known in UNREACHABLE:
        return StorageError(f"{uri}: {reason}: {clause(error)}. {remedy}")
    return NotFoundError(f"{uri}: {reason}. {remedy}")


def clause(error: Exception) -> str:
    """The first line of an exception's text, without a full stop."""
    return first_line(error).split(". Detail:")[0].rstrip(".")

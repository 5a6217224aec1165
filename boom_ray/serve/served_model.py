"""The identity of a served model, and the names that requests may use for it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from boom_ray.artifacts.record import fingerprint


@dataclass(frozen=True)
class ServedModel:
    """One version of a model.

    Attributes:
        uri: URI of its directory.
        name: Name in requests and in `/v1/models`. It stays the same when a new version takes over.
        version: Sent with every response in the header `x-model-version`.
        digest: Digest of its content.
        max_length: Maximum tokens of an input.
    """

    uri: str
    name: str
    version: str
    digest: str
    max_length: int

    @property
    def application(self) -> str:
        """Name of its Ray Serve application.

        Ray Serve uses it in names of actors and log files, which take fewer characters than a directory: the
        hash distinguishes what the readable part does not.
        """
        readable = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{self.name}-{self.version}")[:80]
        return f"boom-ray-{readable}-{fingerprint([self.name, self.version, self.digest])[:8]}"

    @property
    def full_name(self) -> str:
        """`name:version`, which requests may use to pin a version."""
        return f"{self.name}:{self.version}"


def find_model(requested: str | None, models: Sequence[ServedModel]) -> ServedModel | None:
    """The model that a request names, or None.

    Names are tried first, then `name:version`, then versions, so that a model called `v0001` stays reachable.

    Args:
        requested: A name, `name:version`, or a version that only one of the models has; None: the first
            model.
        models: The served models, whose names are distinct.
    """
    if requested is None:
        return models[0]
    for names in ("name", "full_name", "version"):
        found = [model for model in models if getattr(model, names) == requested]
        if len(found) == 1:
            return found[0]
    return None

"""The keys that clients may send: on the cluster's machines, from the environment or from a file it names."""

import os

from boom_ray.errors import BoomError

KEY_VARIABLE = "BOOM_RAY_API_KEY"
KEYS_FILE_VARIABLE = "BOOM_RAY_API_KEYS_FILE"


def read_keys() -> list[str]:
    """The keys that clients may send.

    Raises:
        BoomError: if the file of keys cannot be read, or holds none.
    """
    path = os.environ.get(KEYS_FILE_VARIABLE)
    if not path:
        key = os.environ.get(KEY_VARIABLE)
        return [key] if key else []
    try:
        with open(path, encoding="utf-8") as file:
            keys = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BoomError(f"{KEYS_FILE_VARIABLE}: {path} cannot be read: {error}") from error
    if not keys:
        raise BoomError(f"{KEYS_FILE_VARIABLE}: {path} holds no key. Put one on each line")
    return keys

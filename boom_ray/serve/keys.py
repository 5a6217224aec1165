"""API keys: from an environment variable, or from a file that one names."""

import os

from boom_ray.errors import InputError

KEY_VARIABLE = "BOOM_RAY_API_KEY"
KEYS_FILE_VARIABLE = "BOOM_RAY_API_KEYS_FILE"


def read_keys() -> list[str]:
    """The keys that clients may send, from the environment of this process.

    Raises:
        InputError: if the file of keys cannot be read, or contains none.
    """
    path = os.environ.get(KEYS_FILE_VARIABLE)
    if not path:
        key = os.environ.get(KEY_VARIABLE)
        return [key] if key else []
    try:
        with open(path, encoding="utf-8") as file:
            keys = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{KEYS_FILE_VARIABLE}: {path} cannot be read: {error}") from error
    if not keys:
        raise InputError(f"{KEYS_FILE_VARIABLE}: {path} contains no key. Write one on each line")
    return keys

"""Parallel reads of ranges of one file, for tensors."""

import os

from boom_ray.errors import StorageError
from boom_ray.storage.failures import explained
from boom_ray.storage.files import open_input
from boom_ray.storage.uri import is_local


class RangeReader:
    """Reads ranges of one file into buffers of the caller, from any number of threads at once."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._remote = None if is_local(uri) else open_input(uri)
        with explained(uri):
            self._descriptor = os.open(uri, os.O_RDONLY) if is_local(uri) else -1

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` with the bytes from `offset` on.

        Raises:
            StorageError: if the file ends too early, or cannot be read.
        """
        with explained(self.uri):
            done = 0
            while done < len(target):
                if self._remote is None:
                    count = os.preadv(self._descriptor, [target[done:]], offset + done)
                else:
                    content = self._remote.read_at(len(target) - done, offset + done)
                    count = len(content)
                    target[done : done + count] = content
                if not count:
                    raise StorageError(f"{self.uri}: ends before byte {offset + len(target)}. Fetch it again")
                done += count

    def close(self) -> None:
        """Close the file."""
        if self._remote is not None:
            self._remote.close()
        elif self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

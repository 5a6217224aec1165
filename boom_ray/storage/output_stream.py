"""Sequential output of bounded memory, whatever the speed of the store."""

from types import TracebackType
from typing import Any

import pyarrow

UNSENT_BYTES = 64 << 20  # several parts of an upload, which are sent at the same time


class OutputStream:
    """A `pyarrow` stream that waits for the store after every `UNSENT_BYTES`.

    The clients of stores accept a part at once and send it in the background. A writer that is faster than
    the network would fill the memory with parts that are not sent yet.
    """

    def __init__(self, stream: pyarrow.NativeFile) -> None:
        self._stream, self._unsent = stream, 0

    def write(self, content: Any) -> int:
        """Write a buffer of bytes; returns their number."""
        size = memoryview(content).nbytes
        self._stream.write(content)
        self._unsent += size
        if self._unsent >= UNSENT_BYTES:
            self.flush()
        return size

    def flush(self) -> None:
        """Wait until the store has all that was written."""
        self._stream.flush()
        self._unsent = 0

    def tell(self) -> int:
        """Number of bytes written."""
        return self._stream.tell()

    @property
    def closed(self) -> bool:
        """Whether the file is complete."""
        return self._stream.closed

    def close(self) -> None:
        """Complete the file, which only then exists on a store."""
        self._stream.close()

    def __enter__(self) -> "OutputStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.__exit__(kind, error, trace)

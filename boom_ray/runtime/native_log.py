"""The log of Ray's native code, which writes to the terminal past Python's `sys.stderr`."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

LEVEL = "RAY_BACKEND_LOG_LEVEL"


@contextmanager
def quiet() -> Iterator[None]:
    """While Ray starts, let its native code write fatal errors alone, unless its level of logging is set.

    It reports as errors what Ray Data does on purpose: actors that restart from stored arguments. The
    variable sets the level for the life of the process, and reading it is itself written to the terminal;
    that line is left out, and all others that are written meanwhile follow at the end.
    """
    if LEVEL in os.environ:
        yield
        return
    os.environ[LEVEL] = "fatal"
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            del os.environ[LEVEL]
            written.seek(0)
            for line in written:
                if LEVEL.encode() not in line:
                    os.write(2, line)

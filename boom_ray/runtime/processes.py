"""Names of processes that stay unique after the process ends, to tell files in use from leftovers."""

import os
import re
import socket

import psutil

NAME = re.compile(r".+-\d+-\d+")
CLOCK_MS = 1000  # the system derives a process's start time from its clock, which is adjusted


def own_name() -> str:
    """Host name, PID and start time of this process.

    The PID alone is not unique: a restarted container assigns the same few PIDs again.
    """
    return f"{socket.gethostname()}-{os.getpid()}-{_started(os.getpid())}"


def is_name(name: str) -> bool:
    """Whether a text is the name of a process, on any machine."""
    return NAME.fullmatch(name) is not None


def runs_here(name: str) -> bool:
    """Whether a name is that of a running process on this machine."""
    return _is_of_this_machine(name) and not has_ended(name)


def has_ended(name: str) -> bool:
    """Whether a name is that of a process on this machine that has ended."""
    if not _is_of_this_machine(name):
        return False
    _, pid, started = name.rsplit("-", 2)
    now = _started(int(pid))
    return now is None or abs(now - int(started)) > CLOCK_MS


def _is_of_this_machine(name: str) -> bool:
    return is_name(name) and name.rsplit("-", 2)[0] == socket.gethostname()


def _started(pid: int) -> int | None:
    """Start time of a process in milliseconds since 1970; None if it does not run.

    A zombie does not run: in a container without an init process nothing reaps ended processes.
    """
    try:
        found = psutil.Process(pid)
        return None if found.status() == psutil.STATUS_ZOMBIE else round(found.create_time() * 1000)
    except psutil.NoSuchProcess:
        return None

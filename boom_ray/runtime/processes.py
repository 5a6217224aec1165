"""Processes by names that outlive them, so that what a killed one left can be told from what is in use."""

import os
import re
import socket

import psutil

NAME = re.compile(r".+-\d+-\d+")
CLOCK_MS = 1000  # the start of a process, as the system tells it, moves with the clock


def own_name() -> str:
    """Machine, number and start of this process.

    The number alone is not enough: in a container that is started again the same few numbers come again.
    """
    return f"{socket.gethostname()}-{os.getpid()}-{_started(os.getpid())}"


def is_name(name: str) -> bool:
    """Whether a text names a process, of any machine."""
    return NAME.fullmatch(name) is not None


def runs_here(name: str) -> bool:
    """Whether a name is that of a process of this machine that still runs."""
    return _is_of_this_machine(name) and not has_ended(name)


def has_ended(name: str) -> bool:
    """Whether a name is that of a process of this machine that runs no more."""
    if not _is_of_this_machine(name):
        return False
    _, pid, started = name.rsplit("-", 2)
    now = _started(int(pid))
    return now is None or abs(now - int(started)) > CLOCK_MS


def _is_of_this_machine(name: str) -> bool:
    return is_name(name) and name.rsplit("-", 2)[0] == socket.gethostname()


def _started(pid: int) -> int | None:
    """When a process was started, in milliseconds since 1970; None if there is none, or it has ended.

    In a container nobody may ever collect the processes that have: they stay, as zombies.
    """
    try:
        found = psutil.Process(pid)
        return None if found.status() == psutil.STATUS_ZOMBIE else round(found.create_time() * 1000)
    except psutil.NoSuchProcess:
        return None

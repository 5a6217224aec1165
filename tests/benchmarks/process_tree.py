"""The end of a process with everything below it."""

import contextlib

import psutil


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants at once, as a machine that is switched off does."""
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in [*top.children(recursive=True), top]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

"""A section in a process of its own, which has a time limit and cannot keep the others."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any

from tests.benchmarks.process_tree import kill_tree

LOG_LINES = 15  # of a failed section, on the terminal

Line = dict[str, Any]


def run_section(
    name: str, options: list[str], log_path: str, limit: float, report: Callable[[Line], None]
) -> bool:
    """Run a section and report each result as it comes; at last its seconds, or why it failed.

    Args:
        options: Arguments of `tests.benchmarks.gpu_sections` after the name.
        log_path: File of everything else that the section prints.
        limit: Seconds after which it is killed with everything that it started.

    Returns:
        Whether it ended by itself, without an error.
    """
    since = time.monotonic()
    command = [sys.executable, "-m", "tests.benchmarks.gpu_sections", name, *options]
    with open(log_path, "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        reader = threading.Thread(target=_read, args=(process.stdout, name, log, report), daemon=True)
        reader.start()
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        kill_tree(process.pid)
        process.wait()
        reader.join(5)  # a process that was left behind may hold the pipe
    seconds = round(time.monotonic() - since, 1)
    if code == 0:
        report({"section": name, "case": "whole section", "seconds": seconds})
        return True
    reason = f"late: its limit is {limit:.0f} s" if code is None else f"exit code {code}"
    report({"section": name, "case": "FAILED", "reason": reason, "seconds": seconds})
    with open(log_path, encoding="utf-8", errors="replace") as log:
        print("".join(log.readlines()[-LOG_LINES:]), file=sys.stderr)
    return False


def _read(output: IO[str], name: str, log: IO[str], report: Callable[[Line], None]) -> None:
    """Report the results among the lines that a section prints; libraries print others."""
    for line in output:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if isinstance(found, dict) and found.get("section") == name:
            report(found)
        else:
            log.write(line)
            log.flush()

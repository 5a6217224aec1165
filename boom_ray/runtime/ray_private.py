"""The private API of Ray that boom-ray uses; `tests/runtime/test_ray_private.py` fails when it moves."""

import functools
import re
from typing import Any

from ray._private import worker
from ray._private.services import find_bootstrap_address

# Fractional CPUs are intended: a warning for each further two processes says nothing that can be done.
NOT_SHOWN = re.compile(r"WARNING: \d+ \w+ worker processes have been started")


def last_address() -> str | None:
    """Address of the last cluster started on this machine, where `ray.init()` without an address connects.

    Ray has no public function for it. None if no cluster was started, or `ray stop` ended the last one.
    """
    return find_bootstrap_address(None)


@functools.cache
def hide_process_counts() -> None:
    """Keep the warnings of Ray's daemons about the number of processes from the terminal.

    The thread that listens to the daemons prints all of their messages; Ray has no public filter for it.
    """
    print_message = worker.print_to_stdstream

    def print_others(data: dict[str, Any], ignore_prefix: bool) -> None:
        lines = [line for line in data["lines"] if not NOT_SHOWN.search(line)]
        if lines:
            print_message(data | {"lines": lines}, ignore_prefix)

    worker.print_to_stdstream = print_others

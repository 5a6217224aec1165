"""`python -m tests.chaos.killed EVENT PATTERN COUNT COMMAND...`: boom-ray, killed at a chosen point.

The process sends itself SIGKILL before Python performs EVENT (an audit event, such as `os.rename`) for the
COUNT-th time with arguments that match PATTERN.
"""

import os
import re
import signal
import sys
from typing import Any

from boom_ray.cli import main


def arm(event: str, pattern: str, count: int) -> None:
    """Kill this process before the event."""
    left = count

    def hook(name: str, arguments: Any) -> None:
        nonlocal left
        if name == event and re.search(pattern, repr(arguments)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    arm(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    main(sys.argv[4:])

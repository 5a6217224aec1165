"""Which failures of an attempt end a bag: those that would occur again, and too many without any progress.

The callbacks run in the controller of Ray Train. An exception of a callback ends the trainer, and all ranks
with it: none waits for others in a collective.
"""

from collections.abc import Iterable
from typing import Any

import ray.exceptions
from ray.train import UserCallback

from boom_ray.artifacts import checkpoints
from boom_ray.errors import BoomError, ClusterError


class StopAtBoomErrors(UserCallback):
    """Ends a bag at a `BoomError` of any rank, which would occur again in every attempt.

    Ray Train counts an exception of a rank as a failure and starts the next attempt, whatever it is.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the first `BoomError`; Ray Train wraps what a rank has raised."""
        for wrapper in worker_exceptions.values():
            for error in (wrapper, *wrapper.args):
                if isinstance(error, BoomError):
                    raise error


class StopWithoutProgress(UserCallback):
    """Ends a bag once too many attempts in a row have failed without storing a later checkpoint.

    Ray Train's own limit is of all failures of a trainer, which a long bag reaches on machines that come and
    go. A preempted node is not counted: the bag has not failed, and Ray Train reports the loss at every poll
    until the node's time has run out.

    Args:
        root: URI of the checkpoints of the bag.
        max_failures: Attempts in a row that may fail without progress.
    """

    def __init__(self, root: str, max_failures: int) -> None:
        self.root, self.max_failures = root, max_failures
        self.step, self.failures = checkpoints.newest_step(root), 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Count an attempt that has failed, unless a node was taken away."""
        if not any(map(_is_preemption, worker_exceptions.values())):
            self.count(worker_exceptions.values())

    def count(self, failures: Iterable[Exception]) -> None:
        """Count an attempt that has failed.

        Raises:
            ClusterError: at the first failure beyond `max_failures`.
        """
        step = checkpoints.newest_step(self.root)
        self.failures = 0 if step > self.step else self.failures + 1
        self.step = max(step, self.step)
        if self.failures > self.max_failures:
            raise ClusterError(
                f"{reasons(failures)}. Failed attempts in a row without a checkpoint after "
                f"step {self.step}: {self.failures}, allowed are {self.max_failures} "
                "(train.execution.max_failures)"
            )


def _is_preemption(error: Exception) -> bool:
    """Whether a rank died with a node that its provider took away; Ray Train wraps Ray's own error."""
    cause = getattr(error, "health_check_failure", error)
    return isinstance(cause, ray.exceptions.RayActorError) and cause.preempted


def reasons(failures: Iterable[Exception]) -> str:
    """The distinct errors of all failed ranks, one line each."""
    return "; ".join(dict.fromkeys(map(_reason, failures)))


def _reason(failure: Exception) -> str:
    """The last line of a traceback, or the first line of Ray's explanation of an out-of-memory kill."""
    lines = str(failure).strip().splitlines()
    return lines[0 if isinstance(failure, ray.exceptions.OutOfMemoryError) else -1]

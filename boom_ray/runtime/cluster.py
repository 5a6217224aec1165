"""The connection to Ray: the cluster of RAY_ADDRESS, or a local one, with the same rules as `ray.init`."""

import logging
import os
import socket
import time
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from boom_ray.errors import BoomError, ClusterError
from boom_ray.runtime import native_log, signals
from boom_ray.runtime.ray_private import hide_process_counts, last_address

SECONDS_TO_ANSWER = 10


class ProcessLost(ClusterError):
    """A worker process died, and Ray did not restart it, or not often enough.

    Attributes:
        reason: One line of Ray's message; for a runtime environment that failed, its cause.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"a process of the cluster was lost: {self.reason} Run the command again"


def connect(dashboard: bool = True, yielding: bool = True) -> None:
    """Connect this process to Ray, once. Worker logs stay in the dashboard; errors reach the caller.

    Args:
        dashboard: Whether a local Ray starts a dashboard, which takes three seconds.
        yielding: Whether the workers of a local Ray run at low priority (niceness 15), Ray's default.

    Raises:
        ClusterError: if Ray does not answer at its configured address.
    """
    if ray.is_initialized():
        return
    _check_answers(os.environ.get("RAY_ADDRESS") or last_address())
    # On a busy machine a trainer may wait long for its turn; Ray Train's default of 60 s would fail it.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "900")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    hide_process_counts()
    if not yielding:
        os.environ.setdefault("RAY_worker_niceness", "0")
    with signals.handlers_kept(), native_log.quiet():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)


def _check_answers(address: str | None) -> None:
    """Raise ClusterError if nothing answers at the address; `ray.init` would retry for many minutes."""
    if address and address.startswith(("http://", "https://")):
        raise ClusterError(
            f"RAY_ADDRESS={address}: this is the address of Ray's job API. Submit this command as a job with "
            "`ray job submit`, or unset RAY_ADDRESS to run it on this machine"
        )
    host, _, port = (address or "").rpartition(":")
    if not host or "/" in host:
        return
    deadline = time.monotonic() + SECONDS_TO_ANSWER
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline:
                from_environment = bool(os.environ.get("RAY_ADDRESS"))
                source = "RAY_ADDRESS" if from_environment else "the last cluster of this machine"
                remedy = "Start the cluster, or unset RAY_ADDRESS and run `ray stop` to use a local Ray"
                raise ClusterError(f"{address} ({source}): Ray does not answer. {remedy}") from error
        time.sleep(0.5)


def here() -> NodeAffinitySchedulingStrategy:
    """Schedules an actor on the driver's node, so that it does not die with another node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def result_of(reference: Any) -> Any:
    """`ray.get`, except that a `BoomError` of the task is raised as itself, without Ray's wrappers.

    Raises:
        BoomError: raised by the task.
        ProcessLost: if the task's process or node died.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause: Any = error
        # A task that awaits another task wraps that task's error once more.
        while isinstance(cause, ray.exceptions.RayTaskError) and cause.cause is not cause:
            cause = cause.cause
        if isinstance(cause, BoomError):
            raise cause from None
        raise
    except ray.exceptions.RayError as error:
        in_setup = isinstance(error, ray.exceptions.RuntimeEnvSetupError)
        raise ProcessLost(str(error).strip().splitlines()[-1 if in_setup else 0]) from error

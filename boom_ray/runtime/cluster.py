"""The connection to Ray: the cluster of RAY_ADDRESS, or one started on the spot, as `ray.init` does it."""

import logging
import os
import socket
import time
from typing import Any

import ray
import ray.exceptions
from ray._private.services import find_bootstrap_address
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from boom_ray.errors import BoomError, ClusterError
from boom_ray.runtime import signals

SECONDS_TO_ANSWER = 10


class ProcessLost(ClusterError):
    """A process of the cluster died, and Ray did not start it again, or not often enough.

    Attributes:
        reason: One line of what Ray says; of an environment that could not be set up, what it failed of.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"a process of the cluster was lost: {self.reason} Run the command again"


def connect(dashboard: bool = True, yielding: bool = True) -> None:
    """Connect this process to Ray, once. Worker logs stay in the dashboard; errors reach the caller.

    Args:
        dashboard: Whether a Ray that is started on the spot has one, which takes it three seconds more.
        yielding: Whether its workers let everything else on the machine go first, as is Ray's way.

    Raises:
        BoomError: if there should be a cluster, and nothing answers where it is.
    """
    if ray.is_initialized():
        return
    _refuse_silence(os.environ.get("RAY_ADDRESS") or find_bootstrap_address(None))
    # A trainer that waits its turn on a busy machine has not failed.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "900")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not yielding:
        os.environ.setdefault("RAY_worker_niceness", "0")
    with signals.handlers_kept():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)


def _refuse_silence(address: str | None) -> None:
    """Raise BoomError if nothing answers where `ray.init` would connect to, and wait for many minutes."""
    if address and address.startswith(("http://", "https://")):
        raise ClusterError(
            f"RAY_ADDRESS={address}: is where `ray job submit` takes jobs. Submit this command as one, or "
            "unset RAY_ADDRESS to run it on this machine"
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
                source = (
                    "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") else "the last cluster of this machine"
                )
                remedy = "Start it; or unset RAY_ADDRESS, and let `ray stop` forget what has ended"
                raise ClusterError(f"{address} ({source}): Ray does not answer. {remedy}") from error
        time.sleep(0.5)


def here() -> NodeAffinitySchedulingStrategy:
    """Places an actor on the driver's node, so that no other node that dies takes it along."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def result_of(reference: Any) -> Any:
    """`ray.get` that raises a user's error as itself, not as the failure of the task that found it.

    Raises:
        BoomError: what the task raised.
        ProcessLost: if the process of the task, or its node, died.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause: Any = error
        while isinstance(cause, ray.exceptions.RayTaskError) and cause.cause is not cause:
            cause = cause.cause
        if isinstance(cause, BoomError):
            raise cause from None
        raise
    except ray.exceptions.RayError as error:
        in_setup = isinstance(error, ray.exceptions.RuntimeEnvSetupError)
        raise ProcessLost(str(error).strip().splitlines()[-1 if in_setup else 0]) from error

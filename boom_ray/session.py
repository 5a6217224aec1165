"""The connection to Ray: the cluster of RAY_ADDRESS, or one started on the spot, as `ray.init` does it."""

import logging
import os
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from boom_ray import stop
from boom_ray.errors import BoomError


class ProcessLost(BoomError):
    """A process of the cluster died, and Ray did not start it again, or not often enough."""


def connect(dashboard: bool = True, yielding: bool = True) -> None:
    """Connect this process to Ray, once. Worker logs stay in the dashboard; errors reach the caller.

    Args:
        dashboard: Whether a Ray that is started on the spot has one, which takes it three seconds more.
        yielding: Whether its workers let everything else on the machine go first, as is Ray's way.
    """
    if ray.is_initialized():
        return
    # A trainer that waits its turn on a busy machine has not failed.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "900")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not yielding:
        os.environ.setdefault("RAY_worker_niceness", "0")
    with stop.handlers_kept():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)


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
            raise BoomError(str(cause)) from None
        raise
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise ProcessLost(f"a process of the cluster was lost: {reason} Run the command again") from error

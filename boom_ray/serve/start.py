"""Start an application of Ray Serve, and wait until it is ready, but not without limit."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve import RunTarget
from ray.serve.schema import ApplicationStatus

from boom_ray.errors import ClusterError
from boom_ray.runtime import capacity, demand

POLL_SECONDS = 0.2
logger = logging.getLogger(__name__)


def start(
    application: Any,
    name: str,
    route_prefix: str | None,
    replica: Mapping[str, float],
    num_replicas: int,
    timeout_s: float,
) -> None:
    """Start an application, or replace that of the same name, and return when it is ready.

    Nodes for it are awaited first: Ray Serve's own demand would outlive a driver that is killed.

    Args:
        replica: Ray resources of a replica.
        num_replicas: Replicas to be started.
        timeout_s: Seconds to wait, for resources and for models to be loaded.

    Raises:
        RuntimeError: if a replica cannot be constructed.
        ClusterError: if it is not ready in time.
    """
    started, is_logged = time.monotonic(), False
    # Nodes that are started for it are free.
    lacking = _lacking(replica, num_replicas) if capacity.live(replica) >= num_replicas else ""
    demand.await_capacity(replica, num_replicas, timeout_s=timeout_s, remedy=_remedy(replica))
    target = RunTarget(application, name, route_prefix)
    serve.run_many([target], wait_for_applications_running=False)
    while (found := serve.status().applications[name]).status != ApplicationStatus.RUNNING:
        seconds = time.monotonic() - started
        if found.status == ApplicationStatus.DEPLOY_FAILED:
            raise RuntimeError(found.message)
        if seconds > timeout_s:
            reason = lacking or "its model is still being loaded. Wait longer with --start-timeout"
            raise ClusterError(f"{name}: not ready after {timeout_s:g} s: {reason}")
        if lacking and not is_logged and seconds > demand.LOG_AFTER_SECONDS:
            logger.warning("%s: waiting for at most %g s: %s", name, timeout_s, lacking)
            is_logged = True
        time.sleep(POLL_SECONDS)


def _lacking(replica: Mapping[str, float], num_replicas: int) -> str:
    """The resources of which too few are free, and what to do; an empty text if there are none."""
    total, free = ray.cluster_resources(), ray.available_resources()
    required = {kind: amount * num_replicas for kind, amount in replica.items()}
    kinds = [kind for kind, amount in required.items() if amount > free.get(kind, 0) + 1e-6]
    if not kinds:
        return ""
    needs = [
        f"{required[kind]:g} {kind} ({free.get(kind, 0):g} of {total.get(kind, 0):g} are free)"
        for kind in kinds
    ]
    return f"it needs {' and '.join(needs)}. {_remedy(replica)}"


def _remedy(replica: Mapping[str, float]) -> str:
    share = "let encoders share a GPU (--gpus-per-replica 0.5, also for those that are served), "
    return (
        f"Lower --min-replicas, {share if 'GPU' in replica else ''}end what is served with `serve shutdown` "
        "first, or add nodes (and raise --start-timeout)"
    )

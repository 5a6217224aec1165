"""Placement of merge workers: if files are on local paths, on nodes that have all of them."""

import os
import socket
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from boom_ray import storage
from boom_ray.errors import ClusterError
from boom_ray.runtime import demand, resources

WORKER = {"CPU": 1.0}
REMEDY = "Add nodes with CPUs, or wait longer (--start-timeout, merge.execution.start_timeout_s)"


@ray.remote(num_cpus=0)
def _missing_paths(paths: list[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]


def placements(
    uris: list[str],
    num_workers: int,
    start_timeout_s: float = demand.TIMEOUT_S,
    process: Mapping[str, float] = WORKER,
) -> list[dict[str, Any]]:
    """Ray options of each worker, once the cluster has capacity for one.

    With object stores only, workers spread over the cluster. With local paths, they run on the nodes where
    all of these paths exist; so all nodes that start for them are awaited.

    Args:
        uris: The models, the base model and the output.
        start_timeout_s: Seconds to wait for nodes.
        process: Ray resources of a worker, for which its node must have capacity.

    Raises:
        ClusterError: if the cluster has no capacity for a worker in time, or no node has all local paths.
    """
    paths = [uri for uri in uris if storage.is_local(uri)]
    demand.await_capacity(process, 1, num_workers if paths else 1, start_timeout_s, REMEDY)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not paths or len(nodes) == 1:
        return [{"scheduling_strategy": "SPREAD"}] * num_workers
    nodes = [node for node in nodes if resources.fitting(node["Resources"], process)]
    pinned = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    task: Any = _missing_paths
    missing: list[list[str]] = ray.get(
        [task.options(scheduling_strategy=pin).remote(paths) for pin in pinned]
    )
    usable = [pin for pin, lacking in zip(pinned, missing, strict=True) if not lacking]
    if not usable:
        found = "; ".join(
            f"{node['NodeManagerHostname']} lacks {', '.join(lacking)}"
            for node, lacking in zip(nodes, missing, strict=True)
        )
        raise ClusterError(
            f"no node of the cluster has all models and the output (the driver runs on "
            f"{socket.gethostname()}): {found}. Put them on a shared mount or an object store"
        )
    return [{"scheduling_strategy": usable[number % len(usable)]} for number in range(num_workers)]

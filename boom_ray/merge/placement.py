"""Where merge workers run: on nodes that see all the files, when those lie on local paths."""

import os
import socket
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from boom_ray import storage
from boom_ray.errors import BoomError


@ray.remote(num_cpus=0)
def _unseen(paths: list[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]


def placements(uris: list[str], num_workers: int) -> list[dict[str, Any]]:
    """Ray options of each worker.

    Object stores are near to every node, and workers spread over the cluster. Local paths are near to the
    nodes that have them: those that see all of `uris` share the workers.

    Raises:
        BoomError: if the paths are local and no node sees them all.
    """
    paths = [uri for uri in uris if storage.is_local(uri)]
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not paths or len(nodes) == 1:
        return [{"scheduling_strategy": "SPREAD"}] * num_workers
    pinned = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    task: Any = _unseen
    unseen: list[list[str]] = ray.get([task.options(scheduling_strategy=pin).remote(paths) for pin in pinned])
    near = [pin for pin, missing in zip(pinned, unseen, strict=True) if not missing]
    if not near:
        seen = "; ".join(
            f"{node['NodeManagerHostname']} lacks {', '.join(missing)}"
            for node, missing in zip(nodes, unseen, strict=True)
        )
        raise BoomError(
            f"no node of the cluster sees all models and the output (this is "
            f"{socket.gethostname()}): {seen}. Put them on a shared mount or an object store"
        )
    return [{"scheduling_strategy": near[number % len(near)]} for number in range(num_workers)]

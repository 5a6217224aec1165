"""The capacity of the connected cluster: of its live nodes, and with those that its autoscaler may start."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from boom_ray.runtime import node_types
from boom_ray.runtime.node_types import HEAD, LABEL, NodeType
from boom_ray.runtime.resources import fitting


def live(process: Mapping[str, float]) -> int:
    """Processes with these resources each that fit on the live nodes, regardless of their current use."""
    return sum(fitting(node["Resources"], process) for node in _nodes())


def potential(process: Mapping[str, float]) -> int:
    """The same on the cluster at its largest, with the nodes that its autoscaler may start."""
    return live(process) + sum(
        number * fitting(one.resources, process) for one, number in _startable(process)
    )


def used(resource: str) -> float:
    """The amount of a resource of the live nodes that running tasks and actors, of any driver, reserve."""
    import ray  # here, because plans are made without Ray

    total = ray.cluster_resources().get(resource, 0.0)
    return float(total - min(total, ray.available_resources().get(resource, 0.0)))


def most_cpus() -> int:
    """CPUs of the largest node for work without a GPU, live or one that the autoscaler may start."""
    found = [node["Resources"] for node in _nodes()]
    found += [one.resources for one, number in _startable({"CPU": 1}) if number]
    return max((int(node.get("CPU", 0)) for node in found), default=0)


def _startable(process: Mapping[str, float]) -> list[tuple[NodeType, int]]:
    # Others count towards no limit: the autoscaler ends those that are idle.
    workers = [
        node for node in _nodes() if HEAD not in node["Resources"] and fitting(node["Resources"], process)
    ]
    running = Counter(str((node["Labels"] or {}).get(LABEL)) for node in workers)
    return node_types.declared().startable(process, running)


def _nodes() -> list[dict[str, Any]]:
    """The live nodes."""
    import ray  # here, because plans are made without Ray

    return [node for node in ray.nodes() if node["Alive"]]

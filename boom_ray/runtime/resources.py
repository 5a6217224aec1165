"""Resources of Ray, by Ray's names: `CPU`, `GPU`, `memory`, and those of a cluster's own."""

from collections.abc import Mapping
from typing import Any


def task_options(resources: Mapping[str, float]) -> dict[str, Any]:
    """Options of a Ray task that holds `resources`."""
    others = dict(resources)
    options = {"num_cpus": others.pop("CPU", 0), "num_gpus": others.pop("GPU", 0)}
    return options | {"memory": others.pop("memory", None) or None, "resources": others}


def capacity(resources: Mapping[str, float]) -> int:
    """Processes with `resources` each that fit on the live nodes, regardless of their current use."""
    import ray  # here, because plans are made without Ray

    required = {key: amount for key, amount in resources.items() if amount}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(
        # 1e-9: 0.3 / 0.1 is less than 3 in floating point
        min(int(node.get(key, 0) / amount + 1e-9) for key, amount in required.items()) if required else 1
        for node in nodes
    )

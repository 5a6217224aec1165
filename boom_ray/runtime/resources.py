"""Resources of Ray, by Ray's names: `CPU`, `GPU`, `memory`, and those of a cluster's own."""

from collections.abc import Mapping
from typing import Any


def task_options(resources: Mapping[str, float]) -> dict[str, Any]:
    """Options of a Ray task that holds `resources`."""
    others = dict(resources)
    options = {"num_cpus": others.pop("CPU", 0), "num_gpus": others.pop("GPU", 0)}
    return options | {"memory": others.pop("memory", None) or None, "resources": others}


def fitting(node: Mapping[str, float], process: Mapping[str, float]) -> int:
    """Processes with the resources `process` that fit on a node; one, if they need none."""
    required = {key: amount for key, amount in process.items() if amount}
    # 1e-9: 0.3 / 0.1 is less than 3 in floating point
    return min((int(node.get(key, 0) / amount + 1e-9) for key, amount in required.items()), default=1)

"""The capacity of the cluster, counted in ranks."""

import time
from typing import Any

import ray

from boom_ray.errors import ClusterError
from boom_ray.recipe import TrainExecution


def rank_resources(execution: TrainExecution) -> dict[str, float]:
    """Ray resources of one rank: those of the recipe, by default one CPU and, with `use_gpu`, one GPU."""
    default = {"GPU": 1.0, "CPU": 1.0} if execution.use_gpu else {"CPU": 1.0}
    return default | execution.resources_per_worker


def task_options(execution: TrainExecution) -> dict[str, Any]:
    """Options of a Ray task on the resources of one rank."""
    required = rank_resources(execution)
    options = {"num_cpus": required.pop("CPU", 0), "num_gpus": required.pop("GPU", 0)}
    return options | {"memory": required.pop("memory", None) or None, "resources": required}


def rank_capacity(execution: TrainExecution) -> int:
    """Ranks that fit on the live nodes, regardless of their current use."""
    required = {key: amount for key, amount in rank_resources(execution).items() if amount}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(
        # 1e-9: 0.3 / 0.1 is less than 3 in floating point
        min(int(node.get(key, 0) / amount + 1e-9) for key, amount in required.items()) if required else 1
        for node in nodes
    )


def await_capacity(execution: TrainExecution) -> int:
    """Wait until the cluster has capacity for one bag; nodes may still be joining.

    Returns:
        The capacity in ranks.

    Raises:
        ClusterError: if it has not within `start_timeout_s`.
    """
    num_required = 1 if execution.num_workers == "auto" else execution.num_workers
    deadline = time.monotonic() + execution.start_timeout_s
    while (capacity := rank_capacity(execution)) < num_required:
        if time.monotonic() > deadline:
            resources = rank_resources(execution)
            total = {key: ray.cluster_resources().get(key, 0) for key in resources}
            raise ClusterError(
                f"the cluster is too small for one bag after {execution.start_timeout_s:g} s: required are "
                f"{num_required} workers of {resources}, the cluster has {total} on {len(ray.nodes())} "
                f"nodes, enough for {capacity}. Lower train.execution.num_workers or "
                "train.execution.resources_per_worker, or add nodes"
            )
        time.sleep(1)
    return capacity

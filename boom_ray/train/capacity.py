"""The capacity of the cluster, counted in ranks."""

import time
from typing import Any

import ray

from boom_ray.errors import ClusterError
from boom_ray.recipe.execution import TrainExecution
from boom_ray.runtime import resources


def rank_resources(execution: TrainExecution) -> dict[str, float]:
    """Ray resources of one rank: those of the recipe, by default one CPU and, with `use_gpu`, one GPU."""
    default = {"GPU": 1.0, "CPU": 1.0} if execution.use_gpu else {"CPU": 1.0}
    return default | execution.resources_per_worker


def rank_environment(execution: TrainExecution) -> dict[str, Any]:
    """Ray's runtime environment of one rank: variables that CUDA's libraries read when they start.

    Chunks differ in shape, so that segments of a fixed size would fragment the memory of a GPU. cuBLAS is
    deterministic only with workspaces of a fixed size.
    """
    if not execution.use_gpu:
        return {}
    variables = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    if execution.deterministic:
        variables["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return {"env_vars": variables}


def task_options(execution: TrainExecution) -> dict[str, Any]:
    """Options of a Ray task with the resources and the environment of one rank."""
    options = resources.task_options(rank_resources(execution))
    return options | {"runtime_env": rank_environment(execution) or None}


def rank_capacity(execution: TrainExecution) -> int:
    """Ranks that fit on the live nodes, regardless of their current use."""
    return resources.capacity(rank_resources(execution))


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
            required = rank_resources(execution)
            total = {key: ray.cluster_resources().get(key, 0) for key in required}
            raise ClusterError(
                f"the cluster is too small for one bag after {execution.start_timeout_s:g} s: required are "
                f"{num_required} workers of {required}, the cluster has {total} on {len(ray.nodes())} "
                f"nodes, enough for {capacity}. Lower train.execution.num_workers or "
                "train.execution.resources_per_worker, or add nodes"
            )
        time.sleep(1)
    return capacity

"""The capacity of the cluster, counted in ranks."""

from typing import Any

from boom_ray.recipe.execution import Elastic, TrainExecution
from boom_ray.runtime import capacity, demand, resources


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
    """Ranks that fit on the cluster at its largest, regardless of their current use."""
    return capacity.potential(rank_resources(execution))


def await_capacity(execution: TrainExecution, wanted: int | None = None) -> int:
    """Wait until the cluster has capacity for one bag; its autoscaler starts nodes for it.

    With a range of ranks, the smallest number is required, and the largest is asked for.

    Args:
        wanted: With `num_workers: auto`, ranks that bags can use at once; by default all that may fit.

    Returns:
        The ranks that bags can be scheduled on: with `auto` those that came, else all that may come.

    Raises:
        ClusterError: if it has none within `start_timeout_s`.
    """
    remedy = (
        "Lower train.execution.num_workers or train.execution.resources_per_worker, add nodes, or wait "
        "longer (train.execution.start_timeout_s)"
    )
    num_workers, is_auto = execution.num_workers, execution.num_workers == "auto"
    if is_auto:
        wanted = wanted or rank_capacity(execution)
    elif isinstance(num_workers, Elastic):
        wanted = num_workers.max
    found = demand.await_capacity(
        rank_resources(execution),
        least=execution.fewest_workers,
        wanted=wanted,
        timeout_s=execution.start_timeout_s,
        remedy=remedy,
    )
    return found if is_auto else max(found, rank_capacity(execution))

"""How many ranks the cluster has room for."""

import time

import ray

from boom_ray.errors import BoomError
from boom_ray.recipe import TrainExecution


def resources(execution: TrainExecution) -> dict[str, float]:
    """Ray resources of one rank: those of the recipe, else a GPU, or one CPU."""
    default = {"GPU": 1.0, "CPU": 1.0} if execution.use_gpu else {"CPU": 1.0}
    return default | execution.resources_per_worker


def capacity(execution: TrainExecution) -> int:
    """Ranks that fit on the nodes that are there now, whoever may be using them."""
    wanted = {key: amount for key, amount in resources(execution).items() if amount}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(
        min(int(node.get(key, 0) / amount + 1e-9) for key, amount in wanted.items()) if wanted else 1
        for node in nodes
    )


def await_room(execution: TrainExecution) -> int:
    """Wait until the cluster could hold one bag; nodes may still be joining.

    Returns:
        Its capacity.

    Raises:
        BoomError: if it cannot by `start_timeout_s`.
    """
    least = 1 if execution.num_workers == "auto" else execution.num_workers
    deadline = time.monotonic() + execution.start_timeout_s
    while (room := capacity(execution)) < least:
        if time.monotonic() > deadline:
            asked = resources(execution)
            there = {key: ray.cluster_resources().get(key, 0) for key in asked}
            raise BoomError(
                f"the cluster has no room for one bag after {execution.start_timeout_s:g} s: asked {least} "
                f"workers of {asked}, there is {there} on {len(ray.nodes())} nodes, room for {room}. Lower "
                "train.execution.num_workers or resources_per_worker, or add nodes"
            )
        time.sleep(1)
    return room

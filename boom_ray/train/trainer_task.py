"""Where the trainer of a bag runs: on a worker node, so that the head has room for any number of bags.

Ray Train starts the controller of a trainer, a process of some 400 MiB, on the node of the process that fits
it. So that is a task on one of the worker nodes, of which those without GPUs come first.
"""

import itertools
from typing import Any

import ray
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from boom_ray.errors import BoomError, ClusterError
from boom_ray.runtime.cluster import ProcessLost, result_of
from boom_ray.runtime.node_types import HEAD
from boom_ray.train import bag_trainer
from boom_ray.train.attempts import StopWithoutProgress
from boom_ray.train.bag_job import BagJob
from boom_ray.train.ray_internals import variables


def fit(job: BagJob) -> BoomError | None:
    """Train and publish one bag.

    A trainer that is lost, with its node or alone, is an attempt that has failed. The next is elsewhere.

    Returns:
        The reason if it failed.
    """
    attempts = StopWithoutProgress(job.checkpoints, job.recipe.train.execution.max_failures)
    for turn in itertools.count(job.index):
        try:
            return _fit_once(job, turn)
        except ProcessLost as lost:
            try:
                attempts.count([lost])
            except ClusterError as error:
                return error
        finally:
            _release_ranks(job)
    raise AssertionError


def _fit_once(job: BagJob, turn: int) -> BoomError | None:
    nodes = _worker_nodes()
    if not nodes:
        return bag_trainer.fit(job)
    node = NodeAffinitySchedulingStrategy(nodes[turn % len(nodes)], soft=False)
    environment = {"env_vars": variables()}
    options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": node, "runtime_env": environment}
    task: Any = ray.remote(bag_trainer.fit)
    found: BoomError | None = result_of(task.options(**options).remote(job))
    return found


def _release_ranks(job: BagJob) -> None:
    """Remove the placement group of a trainer that was lost; one that has ended has removed it itself."""
    group = ray.get(job.progress_actor.placement.remote(job.name))
    if group is not None:
        remove_placement_group(group)


def _worker_nodes() -> list[str]:
    """Ids of the live nodes but the head: those without GPUs, or all if there are none."""
    nodes = [node for node in ray.nodes() if node["Alive"] and HEAD not in node["Resources"]]
    return sorted(node["NodeID"] for node in _without_gpus(nodes) or nodes)


def _without_gpus(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [node for node in nodes if not node["Resources"].get("GPU")]

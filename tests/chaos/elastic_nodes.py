"""One bag on as many ranks as there are nodes for, while nodes of one machine go and come.

`test_nodes.py` runs it in a separate process: `python -m tests.chaos.elastic_nodes RECIPE`. Runs of the same
bag follow each other: one on one rank that nothing disturbs, one that loses a node for good, one that a node
joins, and one that loses it after a notice.
"""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.cluster_utils import Cluster

from boom_ray.artifacts import checkpoints
from boom_ray.pipeline.training import train
from boom_ray.recipe import Recipe
from boom_ray.recipe.execution import Elastic
from boom_ray.runs.layout import Layout

ELASTIC = {"num_workers": Elastic(min=1, max=3, resize_every_s=1)}


def variant(recipe: Recipe, name: str, **settings: Any) -> Recipe:
    """The recipe under another name, with other settings of its execution."""
    execution = recipe.train.execution.model_copy(update=settings)
    train = recipe.train.model_copy(update={"execution": execution})
    return recipe.model_copy(update={"name": name, "train": train})


class NoticeSteps(logging.Handler):
    """The steps at which a checkpoint was announced because of a notice."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Read one line of the log."""
        if match := re.search(r"taken away: saving a checkpoint at step (\d+)", record.getMessage()):
            self.found.append(int(match[1]))


def preempt(cluster: Cluster, node: Any, root: str) -> None:
    """Announce the end of a node, and kill it once the checkpoint is stored."""
    steps = NoticeSteps()
    logging.getLogger("boom_ray.train.bag_monitor").addHandler(steps)
    options = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    options += ["--deadline-remaining-seconds", "120", "--node-id", node.node_id]
    subprocess.run(["ray", "drain-node", "--address", cluster.address, *options], check=True)
    stored: set[int] = set()
    while not stored & set(steps.found):
        time.sleep(0.1)
        stored = {state["step"] for _, state in checkpoints.find(root) if state}
    cluster.remove_node(node, allow_graceful=False)
    print("NOTICE", steps.found, flush=True)


def checkpoints_of(recipe: Recipe) -> str:
    """URI of the bag's checkpoints."""
    return Layout(recipe.root).checkpoints("bag-1")


def disturbed(recipe: Recipe, num_ranks: int, disturb: Callable[[], None]) -> None:
    """Train in a thread, and disturb the bag once so many ranks have stored a checkpoint."""
    with ThreadPoolExecutor(1) as thread:
        training = thread.submit(train, recipe)
        found: set[int] = set()
        while num_ranks not in found:
            assert not training.done(), f"training ended before it was disturbed: {training.result()}"
            time.sleep(0.1)
            found = {state["num_ranks"] for _, state in checkpoints.find(checkpoints_of(recipe)) if state}
        disturb()
        training.result()


def main() -> None:
    """Start the nodes, and train the bag under each name."""
    recipe = Recipe.load(sys.argv[1])
    os.environ |= {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
        "RAY_worker_niceness": "0",
    }
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=1)
    nodes = [cluster.add_node(num_cpus=2)]
    ray.init(address=cluster.address, log_to_driver=False)
    train(variant(recipe, "undisturbed"))
    loses, joins = variant(recipe, "loses", **ELASTIC), variant(recipe, "joins", **ELASTIC)
    preempted = variant(recipe, "preempted", **ELASTIC, save_every_steps=20)
    disturbed(loses, 3, lambda: cluster.remove_node(nodes[0], allow_graceful=False))
    disturbed(joins, 1, lambda: nodes.append(cluster.add_node(num_cpus=2)))
    disturbed(preempted, 3, lambda: preempt(cluster, nodes[1], checkpoints_of(preempted)))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()

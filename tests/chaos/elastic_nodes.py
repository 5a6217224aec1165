"""One bag on as many ranks as there are nodes for, while nodes of one machine go and come.

`test_nodes.py` runs it in a separate process: `python -m tests.chaos.elastic_nodes RECIPE`. Runs of the same
bag follow each other: one on one rank that nothing disturbs, one that loses a node for good, and one that a
node joins.
"""

import os
import sys
import threading
import time
from collections.abc import Callable

import ray
from ray.cluster_utils import Cluster

from boom_ray.artifacts import checkpoints
from boom_ray.pipeline.training import train
from boom_ray.recipe import Recipe
from boom_ray.recipe.execution import Elastic

ELASTIC = Elastic(min=1, max=3, resize_every_s=1)
RANKS = {"undisturbed": 1, "loses": ELASTIC, "joins": ELASTIC}


def variant(recipe: Recipe, name: str) -> Recipe:
    """The recipe under another name, with the ranks of `RANKS`."""
    execution = recipe.train.execution.model_copy(update={"num_workers": RANKS[name]})
    settings = recipe.train.model_copy(update={"execution": execution})
    return recipe.model_copy(update={"name": name, "train": settings})


def disturbed(recipe: Recipe, num_ranks: int, disturb: Callable[[], None]) -> None:
    """Train, and disturb the bag once so many ranks have stored a checkpoint."""

    def wait() -> None:
        found = None
        while found is None or found[1]["num_ranks"] != num_ranks:
            time.sleep(0.1)
            found = checkpoints.newest(os.path.join(recipe.root, "checkpoints", "bag-1"))
        disturb()

    threading.Thread(target=wait, daemon=True).start()
    train(recipe)


def main() -> None:
    """Start the nodes, and train under each name of `RANKS`."""
    recipe = Recipe.load(sys.argv[1])
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=1)
    second = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    train(variant(recipe, "undisturbed"))
    disturbed(variant(recipe, "loses"), 3, lambda: cluster.remove_node(second, allow_graceful=False))
    disturbed(variant(recipe, "joins"), 1, lambda: cluster.add_node(num_cpus=2))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()

"""Two bags on two nodes of one machine; one node is removed once both bags have checkpoints.

`test_nodes.py` runs it in a separate process: `python -m tests.chaos.two_nodes RECIPE`.
"""

import os
import sys
import threading
import time

import ray
from ray.cluster_utils import Cluster

from boom_ray.artifacts import checkpoints
from boom_ray.pipeline.training import train
from boom_ray.recipe import Recipe


def remove_node(cluster: Cluster, root: str) -> None:
    """Kill the raylet of the second node, and its workers with it, once both bags can resume."""
    bags = [os.path.join(root, "checkpoints", name) for name in ("bag-1", "bag-2")]
    while not all(checkpoints.newest(bag) for bag in bags):
        time.sleep(0.1)
    print("REMOVED a node", flush=True)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)


def main() -> None:
    """Start the nodes, train, and print the URIs of the models."""
    loaded = Recipe.load(sys.argv[1])
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "900"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    threading.Thread(target=remove_node, args=(cluster, loaded.root), daemon=True).start()
    for uri in train(loaded):
        print("MODEL", uri, flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()

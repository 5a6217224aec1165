"""Two bags on two nodes of one machine; one node is taken away once both bags have checkpoints.

Run by `test_nodes.py` in a process of its own: `python -m tests.chaos.two_nodes RECIPE`.
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


def take_away(cluster: Cluster, root: str) -> None:
    """Kill the second node's raylet, and with it its workers, as soon as both bags can resume."""
    bags = [os.path.join(root, "checkpoints", name) for name in ("bag-1", "bag-2")]
    while not all(checkpoints.newest(bag) for bag in bags):
        time.sleep(0.1)
    print("REMOVED a node", flush=True)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)


def main() -> None:
    """Start the nodes, train, and say which models there are."""
    loaded = Recipe.load(sys.argv[1])
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "900"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    threading.Thread(target=take_away, args=(cluster, loaded.root), daemon=True).start()
    for uri in train(loaded):
        print("MODEL", uri, flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()

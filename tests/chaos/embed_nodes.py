"""An embedding run on two nodes of one machine; one node is removed once partitions are stored.

`test_nodes.py` runs it in a separate process: `python -m tests.chaos.embed_nodes MODEL SOURCE TARGET`.
"""

import glob
import os
import sys
import threading
import time

import ray
from ray.cluster_utils import Cluster

from boom_ray.embed.embed_options import EmbedOptions
from boom_ray.embed.embedding_run import embed


def remove_node(cluster: Cluster, target: str) -> None:
    """Kill the raylet of the second node, and its workers with it, once partitions are stored."""
    parts = os.path.join(
        os.path.dirname(target), f".{os.path.basename(target)}.unfinished-*", "part-*.parquet"
    )
    while len(glob.glob(parts)) < 2:
        time.sleep(0.02)
    print(f"REMOVED a node after {len(glob.glob(parts))} partitions", flush=True)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)


def main() -> None:
    """Start the nodes, embed, and print the number of rows."""
    model, source, target = sys.argv[1:]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    threading.Thread(target=remove_node, args=(cluster, target), daemon=True).start()
    record = embed(model, source, target, EmbedOptions(num_workers=2, chunk_tokens=1))
    print("ROWS", record.config.rows, flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()

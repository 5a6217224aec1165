"""The overhead of many bags apart from their training: seconds per bag, and memory of the head.

    python tests/benchmarks/control_plane.py [--bags 100] [--nodes 4]

`boom_ray.train.bagging` schedules each bag of a tiny corpus as a trainer of Ray Train with one rank, on
`--nodes` raylets with one logical CPU for one rank each, and a head without ranks. Every second the resident
memory of the driver and of each part of the head is recorded. Its growth over the bags that have ended is the
slope of a fitted line; with `--nodes` as large as `--bags`, the largest of two runs tells what a bag in
training takes.
"""

import json
import os
import sys
import tempfile
import threading
import time
from itertools import compress
from typing import Any

import click
import numpy as np
import psutil

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)
PARTS = {
    "controllers": "TrainController",
    "trainers": "ray::fit",
    "cleaners": "PlacementGroupCleaner",
    "agents": "Agent",
    "gcs": "gcs_server",
    "raylet": "raylet/raylet",
    "dashboard": "dashboard",
}


def memory(head: Any) -> dict[str, float]:
    """Resident MiB of the processes that serve all bags: the driver, and each part of Ray on the head."""
    found = dict.fromkeys(["driver", *PARTS], 0.0)
    found["driver"] = psutil.Process().memory_info().rss / 2**20
    for _, popen in head.live_processes():
        started = psutil.Process(popen.pid)
        for process in [started, *started.children(recursive=True)]:
            try:
                line, size = " ".join(process.cmdline()), process.memory_info().rss / 2**20
            except psutil.Error:
                continue
            if part := next((part for part, pattern in PARTS.items() if pattern in line), None):
                found[part] += size
    return found


def prepare(directory: str, num_bags: int) -> Any:
    """A recipe with `num_bags` bags of a tiny corpus."""
    from boom_ray.recipe import Recipe
    from tests import texts
    from tests.base_models import build_qwen3
    from tests.conftest import recipe_values

    files = texts.write_corpus(f"{directory}/corpus")
    values = recipe_values(build_qwen3(f"{directory}/qwen3"), files, "", f"{directory}/runs")
    values |= {"bags": {"ratios": [50] * num_bags, "seed": 7}, "evaluate": {}}
    values["train"] |= {"max_steps": 2}
    values["train"]["execution"] |= {"resources_per_worker": {"CPU": 1}}
    path = f"{directory}/recipe.yaml"
    with open(path, "w") as file:
        json.dump(values, file)
    return Recipe.load(path)


class Recorder:
    """Samples the memory every second, with the number of bags that have ended, in a thread of its own."""

    def __init__(self, head: Any) -> None:
        self.head, self.ended = head, 0
        self.samples: list[tuple[int, dict[str, float]]] = []
        self.done = threading.Event()
        threading.Thread(target=self._record, daemon=True).start()

    def _record(self) -> None:
        while not self.done.wait(1):
            self.samples.append((self.ended, memory(self.head)))

    def growth(self) -> dict[str, float]:
        """MiB of each part for each bag that has ended, after the first tenth of them."""
        ended = np.array([number for number, _ in self.samples])
        late = ended >= max(1, ended.max() // 10)
        sizes = list(compress([size for _, size in self.samples], late))
        return {
            part: float(np.polyfit(ended[late], [size[part] for size in sizes], 1)[0]) for part in sizes[0]
        }

    def largest(self) -> dict[str, int]:
        """MiB of each part at its largest."""
        return {part: round(max(size[part] for _, size in self.samples)) for part in self.samples[0][1]}


@click.command()
@click.option("--bags", default=100)
@click.option("--nodes", default=4)
def main(bags: int, nodes: int) -> None:
    """Train, and print one line of JSON."""
    import ray
    from ray.cluster_utils import Cluster

    from boom_ray.pipeline.training import train
    from boom_ray.runtime.cluster import connect
    from boom_ray.train import trainer_task
    from tests.object_store import free_ports

    with tempfile.TemporaryDirectory() as directory:
        prepared = prepare(directory, bags)
        [port] = free_ports(1)
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        os.environ["RAY_ADDRESS"] = cluster.address
        connect()
        recorder, fit, lasted = Recorder(cluster.head_node), trainer_task.fit, list[float]()

        def timed(job: Any) -> Any:
            began = time.monotonic()
            problem = fit(job)
            lasted.append(time.monotonic() - began)
            recorder.ended += 1
            return problem

        trainer_task.fit = timed
        began = time.monotonic()
        train(prepared)
        seconds = time.monotonic() - began
        recorder.done.set()
        found = {
            "bags": bags,
            "nodes": nodes,
            "seconds": round(seconds, 1),
            "seconds_of_a_bag": round(float(np.median(lasted)), 2),
            "first": {part: round(size) for part, size in recorder.samples[0][1].items()},
            "largest": recorder.largest(),
        }
        if bags > 2 * nodes:  # or none of them ended before the last had begun
            found["growth"] = {part: round(slope, 3) for part, slope in recorder.growth().items()}
        print(json.dumps(found), flush=True)
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()

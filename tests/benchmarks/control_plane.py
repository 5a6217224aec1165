"""The overhead of a hundred bags apart from their training: seconds per bag, and memory of the head.

    python tests/benchmarks/control_plane.py [--bags 100] [--nodes 4] [--real]

`boom_ray.train.bagging` schedules each bag as a trainer of Ray Train with one rank, on `--nodes` raylets
with one logical CPU for one rank each, and a head without ranks. Without `--real`, the rank takes one
AdamW step of a linear layer instead of training the bag, so that only the overhead is measured. After
every bag the resident memory of the driver and of each part of the head is recorded; its growth is the
slope of a fitted line.
"""

import json
import os
import sys
import tempfile
import time
from typing import Any

import click
import numpy as np
import psutil

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)
PARTS = {
    "controllers": "TrainController",
    "agents": "Agent",
    "gcs": "gcs_server",
    "raylet": "raylet/raylet",
    "dashboard": "dashboard",
}


def one_step(config: dict[str, Any]) -> None:
    """The least a rank can do: one optimizer step, which it reports to the progress actor."""
    import torch

    from boom_ray.train.progress_actor import BagState

    began, job = time.time(), config["job"]
    layer = torch.nn.Linear(32, 32)
    optimizer = torch.optim.AdamW(layer.parameters())
    loss = layer(torch.randn(8, 32)).square().mean()
    loss.backward()
    optimizer.step()
    job.progress_actor.report.remote(job.name, BagState(1, 1, loss.item(), 256.0, 0.0))
    with open(os.path.join(job.recipe.root, f"{job.name}.json"), "w") as file:
        json.dump(time.time() - began, file)


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


@click.command()
@click.option("--bags", default=100)
@click.option("--nodes", default=4)
@click.option("--real", is_flag=True)
def main(bags: int, nodes: int, real: bool) -> None:
    """Train, and print one line of JSON."""
    import ray
    from ray.cluster_utils import Cluster

    from boom_ray.pipeline.training import train
    from boom_ray.runtime.cluster import connect
    from boom_ray.train import bag_trainer

    with tempfile.TemporaryDirectory() as directory:
        prepared = prepare(directory, bags)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True})
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        os.environ["RAY_ADDRESS"] = cluster.address
        connect()
        ended: list[tuple[float, dict[str, float]]] = [(time.time(), memory(cluster.head_node))]
        fit, lasted = bag_trainer.fit, []

        def timed(job: Any) -> Any:
            began = time.time()
            problem = fit(job)
            ended.append((time.time(), memory(cluster.head_node)))
            lasted.append(ended[-1][0] - began)
            return problem

        bag_trainer.fit = timed
        if not real:
            bag_trainer._train_bag = one_step
        train(prepared)
        print(json.dumps(summary(prepared.root, ended, lasted, real)), flush=True)
        ray.shutdown()
        cluster.shutdown()


def summary(root: str, ended: list[tuple[float, dict[str, float]]], lasted: list[float], real: bool) -> Any:
    """Seconds and MiB; `growth` is the growth of memory per bag after the first tenth of the bags."""
    inside = [_inside(root, name) for name in os.listdir(root) if name.endswith(".json") and "bag" in name]
    sizes = [size for _, size in ended]
    skip = max(1, len(sizes) // 10)
    slopes = {
        part: float(np.polyfit(np.arange(skip, len(sizes)), [size[part] for size in sizes[skip:]], 1)[0])
        for part in sizes[0]
    }
    return {
        "bags": len(lasted),
        "real": real,
        "seconds": round(ended[-1][0] - ended[0][0], 1),
        "seconds_a_bag": round((ended[-1][0] - ended[0][0]) / len(lasted), 2),
        "latency": round(float(np.median(lasted)), 2),
        "in_train_function": round(float(np.median(inside)), 3) if inside else None,
        "first": {part: round(size) for part, size in sizes[0].items()},
        "last": {part: round(size) for part, size in sizes[-1].items()},
        "growth": {part: round(slope, 3) for part, slope in slopes.items()},
    }


def _inside(root: str, name: str) -> float:
    with open(os.path.join(root, name)) as file:
        return json.load(file)


if __name__ == "__main__":
    main()

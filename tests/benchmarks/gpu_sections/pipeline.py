"""What the sections of the pipeline share: a local Ray, a recipe in miniature, and the commands of a user."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import ray
import yaml

from boom_ray.runs.layout import Layout
from tests import texts
from tests.benchmarks.gpu_sections.bench import Bench
from tests.benchmarks.gpu_sections.models import base_model
from tests.benchmarks.process_tree import kill_tree

#: Settings of Ray that `tests/conftest.py` explains.
QUICK = {
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    """A Ray for all commands of a section, which find it by RAY_ADDRESS."""
    os.environ |= QUICK
    ray.init("local", num_cpus=max(4, os.cpu_count() or 1), include_dashboard=False, log_to_driver=False)
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        ray.shutdown()


def write_recipe(bench: Bench, name: str, steps: int, evaluation: str | None = None, **execution: Any) -> str:
    """Write a recipe of two bags side by side, each on half a device; returns its path.

    Args:
        name: Of the run.
        steps: Optimizer steps of each bag.
        evaluation: A directory of tasks; None to measure nothing.
        execution: More settings of `train.execution`.
    """
    home = bench.path("pipeline")
    files = texts.write_corpus(f"{home}/corpus", bench.sized(400, 48))
    rank = bench.sized({"GPU": 0.5, "CPU": 2}, {"CPU": 0.5})
    values = {
        "name": name,
        "storage": f"{home}/runs",
        "base_model": {"path": base_model(bench, "small"), "pooling": "lasttoken"},
        "data": {
            "query_template": "{query}",
            "tasks": [
                {"name": "docstring-to-code", "path": files["docstring-to-code"]},
                {
                    "name": "docstring-to-package",
                    "path": files["docstring-to-package"],
                    "type": "classification",
                },
            ],
        },
        "bags": {"ratios": [80, 100]},
        "train": {
            "batch_size": bench.sized(64, 8),
            "group_size": 4,
            "query_max_length": bench.sized(256, 32),
            "passage_max_length": bench.sized(256, 32),
            "epochs": 100,
            "max_steps": steps,
            "learning_rate": 1e-3,
            "precision": "bf16",
            "execution": {"use_gpu": not bench.tiny, "resources_per_worker": rank, **execution},
        },
        "evaluate": {"data": evaluation, "max_length": 64},
    }
    path = f"{home}/{name}.yaml"
    with open(path, "w", encoding="utf-8") as file:
        yaml.safe_dump(values, file, sort_keys=False)
    return path


def layout(bench: Bench, name: str) -> Layout:
    """The files of a run."""
    return Layout(bench.path("pipeline", "runs", name))


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[psutil.Popen]:
    """A command of boom-ray that is killed at the end of the block; its output goes to the log."""
    command = [sys.executable, "-m", "boom_ray.cli", *arguments]
    process = psutil.Popen(command, stdout=sys.stderr, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        kill_tree(process.pid)
        process.wait()


def boom_ray(*arguments: str) -> float:
    """Run a command of boom-ray to its end; returns its seconds.

    Raises:
        SystemExit: if it fails.
    """
    since = time.perf_counter()
    with started(*arguments) as process:
        code = process.wait()
    if code:
        raise SystemExit(f"boom-ray {' '.join(arguments)}: exit code {code}")
    return time.perf_counter() - since


def steps_of(model: str) -> list[dict[str, Any]]:
    """The metrics log of a bag's model, a line per step."""
    with open(os.path.join(model, "metrics.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def median_of(steps: list[dict[str, Any]], name: str) -> float | None:
    """The median of a metric over the second half of the steps; None where it was not measured."""
    values = [step[name] for step in steps[len(steps) // 2 :] if name in step]
    return statistics.median(values) if values else None

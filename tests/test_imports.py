"""The layers below Ray stand without it, and imports point downward only."""

import ast
import os
import subprocess
import sys

import boom_ray

ROOT = os.path.dirname(boom_ray.__file__)
BELOW_RAY = [
    *("recipe", "storage", "artifact", "driver", "stop", "lineage", "status"),
    *("data.rows", "data.corpus", "data.bags", "data.batches", "data.collate"),
    *("model.encoder", "model.tokenizer", "model.directory", "model.card", "model.self_test"),
    *("merge.gram", "merge.methods", "merge.tensors", "merge.plan", "merge.elementwise", "merge.stream"),
    *("merge.check", "merge.cut", "merge.distances", "page.render"),
    *("planner.plan", "planner.outlook", "planner.calibration"),
    *("train.loss", "train.step", "train.checkpoint", "train.deepspeed"),
]
STAGES = ["train", "merge", "evaluate", "mteb", "embed", "serve", "report"]
BASE = ["recipe", "storage", "artifact", "data", "model", "errors", "progress", "session", "driver", "stop"]


def test_the_layers_below_ray_import_neither_ray_nor_deepspeed():
    modules = ", ".join(f"boom_ray.{name}" for name in BELOW_RAY)
    code = f"import {modules}, sys; print([m for m in ('ray', 'deepspeed') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def imported(path: str) -> set[str]:
    """First-level names of the project that a file imports, at module level or inside functions."""
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "boom_ray":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("boom_ray."):
            names.add(node.module.split(".")[1])
    return names


def files_of(part: str) -> list[str]:
    path = os.path.join(ROOT, part)
    if os.path.isfile(f"{path}.py"):
        return [f"{path}.py"]
    return [os.path.join(path, name) for name in os.listdir(path) if name.endswith(".py")]


def test_no_stage_imports_another_and_the_base_imports_no_stage():
    for part in STAGES + BASE:
        foreign = (set(STAGES) | {"pipeline", "cli"}) - {part}
        if part == "evaluate":
            foreign.remove("mteb")  # which measures the tasks that are not searches
        for path in files_of(part):
            assert not imported(path) & foreign, path

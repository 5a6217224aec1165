"""Layers without Ray import without it, and imports between rooms point downward only."""

import ast
import os
import subprocess
import sys

import pytest

import boom_ray

ROOT = os.path.dirname(boom_ray.__file__)
WITHOUT_RAY = [
    *(
        "recipe",
        "recipe.reading",
        "storage",
        "artifacts.record",
        "artifacts.staging",
        "artifacts.checkpoints",
    ),
    *(
        "artifacts.tensors",
        "runs.identity",
        "runs.heartbeat",
        "runs.versions",
        "runs.ancestry",
        "runs.status",
    ),
    *("runtime.signals", "runtime.console", "runtime.processes", "runtime.scratch"),
    *(
        "data.rows",
        "data.training_row",
        "data.answers",
        "data.corpus",
        "data.bags",
        "data.batches",
        "data.collate",
    ),
    *("model.encoder", "model.tokenizer", "model.directory", "model.card", "model.self_test"),
    *("merge.gram", "merge.methods", "merge.shards", "merge.elementwise", "merge.stream", "merge.settings"),
    *("merge.check_inputs", "merge.cut", "merge.distances", "report.render"),
    *("planner.plan", "planner.forecast", "planner.calibration"),
    *("train.loss", "train.step", "train.engine"),
]
#: Every room, top floor first: a room imports from floors below its own, never from its own or above.
FLOORS = [
    ["cli"],
    ["api"],
    ["planner"],
    ["pipeline"],
    ["train", "merge", "evaluation", "embed", "serve", "report"],
    ["runs"],
    ["data", "model"],
    ["artifacts"],
    ["recipe"],
    ["storage"],
    ["runtime"],
    ["errors"],
]
ROOMS = [room for floor in FLOORS for room in floor]


def test_layers_below_ray_import_neither_ray_nor_deepspeed():
    modules = ", ".join(f"boom_ray.{name}" for name in WITHOUT_RAY)
    code = f"import {modules}, sys; print([m for m in ('ray', 'deepspeed') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def imported(path: str) -> set[str]:
    """Rooms that a file imports, at module level or inside functions."""
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "boom_ray":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("boom_ray."):
            names.add(node.module.split(".")[1])
    return names


def files_of(room: str) -> list[str]:
    path = os.path.join(ROOT, room)
    if os.path.isfile(f"{path}.py"):
        return [f"{path}.py"]
    return [
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.endswith(".py")
    ]


def test_every_room_has_a_floor():
    found = {name.removesuffix(".py") for name in os.listdir(ROOT) if name.endswith(".py")}
    found |= {name for name in os.listdir(ROOT) if os.path.isfile(os.path.join(ROOT, name, "__init__.py"))}
    assert found - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_floors_below_its_own(room):
    own = next(number for number, floor in enumerate(FLOORS) if room in floor)
    above = {name for floor in FLOORS[: own + 1] for name in floor} - {room}
    wrong = {
        os.path.relpath(path, ROOT): sorted(imported(path) & above)
        for path in files_of(room)
        if imported(path) & above
    }
    assert wrong == {}

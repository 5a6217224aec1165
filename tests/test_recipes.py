"""Every recipe in `jobs/recipes` can be planned without Ray, a hub, a base model or training."""

import glob
import os
import subprocess
import sys

import pytest

from boom_ray.data.batches import num_steps
from boom_ray.planner.plan import PlanOptions, plan
from boom_ray.recipe import Recipe

RECIPES = sorted(glob.glob(os.path.join(os.path.dirname(__file__), "..", "jobs", "recipes", "*.yaml")))
TASKS = ("docstring-to-code", "code-to-docstring", "docstring-to-package")
NUM_ROWS = 640


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The corpus of the quickstart without its base models, and an empty storage."""
    for base in ("minilm", "qwen3", "update", "baseline"):
        for name in TASKS:
            file = tmp_path / base / "train" / f"{name}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text('{"query": "q", "pos": ["p"]}\n' * NUM_ROWS)
    monkeypatch.setenv("BOOM_RAY_HOME", str(tmp_path))
    monkeypatch.setenv("BOOM_RAY_STORAGE", str(tmp_path / "storage"))
    return tmp_path


@pytest.mark.parametrize("path", RECIPES, ids=[os.path.basename(path) for path in RECIPES])
def test_a_recipe_can_be_planned(path, home, minilm):
    recipe = Recipe.load(path)
    on_hub = recipe.base_model.path.startswith("hf://")
    config_file = None if on_hub else os.path.join(minilm, "config.json")
    made = plan(recipe, PlanOptions(num_gpus=64, config_file=config_file))
    assert [bag.planned.bag for bag in made.estimate.bags] == recipe.bags.ratios
    for bag in made.estimate.bags:
        rows = {
            task: round(n * bag.planned.bag.ratio / 100)
            for task, n in made.estimate.workload.num_rows.items()
        }
        assert bag.rows == sum(rows.values()) and bag.steps == num_steps(rows.values(), recipe.train)
    assert made.estimate.passes == pytest.approx(sum(bag.ratio for bag in recipe.bags.ratios) / 100, rel=0.01)
    assert sum(bag.ranks for bag in made.estimate.bags if bag.start == 0) <= 64
    if not on_hub:
        sizes = dict.fromkeys(TASKS, NUM_ROWS)
        assert made.estimate.workload.num_rows == {
            task.name: min(task.limit or NUM_ROWS, sizes[task.name]) for task in recipe.data.tasks
        }
    if "qwen3-0.6b-english" in path:
        assert sum(bag.steps for bag in made.estimate.bags) == 22_350
    assert not os.path.exists(home / "storage"), "a plan writes nothing"


def test_the_command_plans_without_starting_ray(tmp_path):
    path = next(path for path in RECIPES if path.endswith("qwen3-4b-english.yaml"))
    code = (
        "import sys; from boom_ray.cli import main\n"
        "main(['plan', sys.argv[1]], standalone_mode=False)\n"
        "assert 'ray' not in sys.modules and 'deepspeed' not in sys.modules"
    )
    environment = {**os.environ, "BOOM_RAY_STORAGE": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code, path], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = [line.partition(":")[0] for line in run.stdout.splitlines()]
    assert [f"bag-{number}" for number in range(1, 6)] == [name for name in lines if name.startswith("bag-")]
    assert {"corpus", "model", "schedule", "memory", "failures", "cost", "assumptions"} <= set(lines)

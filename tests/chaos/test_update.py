"""An update that is killed at every stage makes the child of an undisturbed one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from glob import glob

import pytest
import ray
import yaml

from boom_ray import artifacts
from boom_ray.pipeline.run import run
from boom_ray.pipeline.update.make import update
from boom_ray.recipe import Recipe
from boom_ray.runs.updates import UpdateRequest, read_tasks
from tests import texts
from tests.conftest import recipe_values

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

Condition = Callable[[], object]


@pytest.fixture
def command(qwen3, corpus_files, beir, tmp_path) -> tuple[list[str], UpdateRequest]:
    """An update of a published v0001 in `runs`, as a command and as a request; a copy is in `undisturbed`."""
    values = recipe_values(qwen3, corpus_files, beir, f"{tmp_path}/runs") | {"bags": {"ratios": [40, 60]}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    run(Recipe.load(f"{tmp_path}/recipe.yaml"))
    shutil.copytree(tmp_path / "runs", tmp_path / "undisturbed")
    pairs = list(texts.functions("http"))
    rows = [{"query": text, "pos": [code]} for text, code in pairs[:24]]
    texts.write_jsonl(f"{tmp_path}/http.jsonl", rows)
    texts.write_beir(f"{tmp_path}/new/http", pairs[24:44])
    arguments = ["update", f"{tmp_path}/recipe.yaml", "--new-data", f"{tmp_path}/http.jsonl"]
    request = UpdateRequest(
        parent="v0001", tasks=read_tasks(f"{tmp_path}/http.jsonl"), new_evaluation=f"{tmp_path}/new"
    )
    return [*arguments, "--new-evaluation", f"{tmp_path}/new"], request


def start(*command: str) -> subprocess.Popen[str]:
    """Start a driver on the cluster that these tests share."""
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_when(command: list[str], condition: Condition) -> None:
    """Start the update, and kill its driver once a condition holds."""
    driver = start("boom_ray.cli", *command)
    deadline = time.monotonic() + 200
    while not condition():
        assert driver.poll() is None and time.monotonic() < deadline, driver.communicate(timeout=10)
        time.sleep(0.002)
    driver.kill()
    assert driver.wait(60) == -signal.SIGKILL


def kill_at(command: list[str], event: str, pattern: str, count: int = 1) -> None:
    """Run the update in a process that is killed before an event."""
    driver = start("tests.chaos.killed", event, pattern, str(count), *command)
    output, _ = driver.communicate(timeout=250)
    assert driver.returncode == -signal.SIGKILL, output


@pytest.mark.timeout(1500)
def test_an_update_killed_at_every_stage_makes_the_same_child(command, tmp_path):
    arguments, request = command
    root = f"{tmp_path}/runs/tiny"
    mine, child = f"{root}/updates/v0002", f"{root}/models/v0002"
    stage = f"{root}/models/.v0002.stage-*"

    kill_at(arguments, "os.mkdir", r"/core/\.v0001-40\.stage")
    assert os.path.exists(f"{mine}/update.json") and not os.path.exists(f"{root}/core/v0001-40")
    kill_at(arguments, "os.rename", r"/core/v0001-40'")
    assert not os.path.exists(f"{root}/core/v0001-40"), "drawn, but not visible yet"

    kill_when(arguments, lambda: glob(f"{mine}/checkpoints/bag-1/*"))
    assert os.path.exists(f"{root}/core/v0001-40") and not os.path.exists(f"{mine}/models/bag-1")

    num_cached = len(os.listdir(f"{root}/evaluation"))
    kill_when(arguments, lambda: glob(f"{stage}/*.safetensors"))
    trained = artifacts.verify(f"{mine}/models/bag-1")
    assert len(os.listdir(f"{root}/evaluation")) == num_cached, "merging, but nothing measured yet"

    kill_at(arguments, "os.rename", r"/evaluation/[0-9a-f]+\.json'", count=2)
    assert (
        len([name for name in os.listdir(f"{root}/evaluation") if name.endswith(".json")]) == num_cached + 1
    )

    kill_at(arguments, "os.rename", r"/models/v0002'")
    (staged,) = glob(stage)
    assert os.path.exists(f"{staged}/artifact.json") and not os.path.exists(child), (
        "complete, but not visible yet"
    )

    driver = start("boom_ray.cli", *arguments)
    output, _ = driver.communicate(timeout=250)
    assert driver.returncode == 0 and child in output, output
    assert glob(stage) == [] and not os.path.exists(f"{root}/models/v0003")
    assert artifacts.verify(f"{mine}/models/bag-1").created == trained.created, "trained once"

    undisturbed = Recipe.load(f"{tmp_path}/recipe.yaml", f"{tmp_path}/undisturbed")
    expected = artifacts.verify(update(undisturbed, request).model)
    found = artifacts.verify(child)
    assert found.digest == expected.digest and found.metrics == expected.metrics

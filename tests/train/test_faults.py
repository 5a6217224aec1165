"""Failures while bags train, with real kills: no step is lost, and no wrong model is published."""

import glob
import json
import os
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import ray
import torch
import yaml
from safetensors.torch import load_file

from boom_ray import artifacts
from boom_ray.artifacts import checkpoints
from boom_ray.data import bags, corpus
from boom_ray.errors import ClusterError, InputError, StorageError
from boom_ray.model import directory
from boom_ray.pipeline.training import train as train_recipe
from boom_ray.recipe import Recipe
from tests.conftest import recipe_values

pytestmark = pytest.mark.usefixtures("ray_cluster")

MakeRecipe = Callable[..., Recipe]
EXECUTION = {"resources_per_worker": {"CPU": 0.5}, "save_every_steps": 2, "zero_stage": 1, "max_failures": 3}


def one_bag_recipes(directory: Any, base: str, corpus_files: dict[str, str], beir: str) -> MakeRecipe:
    """Makes recipes with one bag, whose training is changed by keyword arguments."""

    def make(name: str, execution: dict[str, Any] | None = None, **train: Any) -> Recipe:
        values = recipe_values(base, corpus_files, beir, str(directory / "runs"))
        lengths = {"query_max_length": 64, "passage_max_length": 32}
        options = {"batch_size": 8, "group_size": 3, "epochs": 2, "precision": "fp32", **lengths}
        options |= {"average": {"last": 3, "every_steps": 3}}
        options |= {"execution": EXECUTION | (execution or {}), **train}
        values |= {"name": name, "train": options, "bags": {"ratios": [100]}, "evaluate": {}}
        path = directory / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return Recipe.load(str(path))

    return make


@pytest.fixture
def one_bag(minilm: str, corpus_files: dict[str, str], beir: str, tmp_path: Any) -> MakeRecipe:
    return one_bag_recipes(tmp_path, minilm, corpus_files, beir)


@pytest.fixture(scope="module")
def undisturbed(
    minilm: str, corpus_files: dict[str, str], beir: str, tmp_path_factory: pytest.TempPathFactory
) -> Recipe:
    """The recipe of a run without failures, which is finished."""
    make = one_bag_recipes(tmp_path_factory.mktemp("undisturbed"), minilm, corpus_files, beir)
    recipe = make("undisturbed")
    train_recipe(recipe)
    return recipe


def weights_of(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load_file(f"{recipe.root}/models/bag-1/model.safetensors")


def metrics_of(recipe: Recipe) -> list[dict[str, Any]]:
    """The lines of the bag's metrics log."""
    with open(f"{recipe.root}/models/bag-1/metrics.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def steps_of(recipe: Recipe) -> list[int]:
    return [step["step"] for step in metrics_of(recipe)]


def processes(name: str) -> list[psutil.Process]:
    """The processes of this session's Ray that run an actor of this name."""
    children = psutil.Process().children(recursive=True)
    return [process for process in children if name in " ".join(process.cmdline())]


def train_and(disturb: Callable[[Recipe], None], recipe: Recipe) -> None:
    """Train in a thread, and call `disturb` as soon as there is a checkpoint."""
    errors: list[BaseException] = []

    def train() -> None:
        try:
            train_recipe(recipe)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    while thread.is_alive() and checkpoints.newest(f"{recipe.root}/checkpoints/bag-1") is None:
        time.sleep(0.05)
    assert thread.is_alive(), "training ended before it was disturbed"
    disturb(recipe)
    thread.join()
    if errors:
        raise errors[0]


def kill_a_rank(recipe: Recipe) -> None:
    processes("RayTrainWorker")[0].send_signal(signal.SIGKILL)


def end_for_good(recipe: Recipe) -> None:
    """Kill a rank, and hide the corpus from the next attempt: an error that is not retried."""
    os.rename(f"{recipe.root}/corpus", f"{recipe.root}/hidden")
    kill_a_rank(recipe)


def interrupt(recipe: Recipe) -> None:
    """Train until the bag has a checkpoint and has ended for good."""
    with pytest.raises(StorageError, match=r"bag-1: .* cannot read the files"):
        train_and(end_for_good, recipe)
    os.rename(f"{recipe.root}/hidden", f"{recipe.root}/corpus")


def stop_a_rank(recipe: Recipe) -> None:
    processes("RayTrainWorker")[0].send_signal(signal.SIGSTOP)


def relative_difference(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert weights.keys() == expected.keys()
    square = sum((weights[name].double() - expected[name].double()).square().sum() for name in expected)
    return (square / sum(tensor.double().square().sum() for tensor in expected.values())).sqrt().item()


def assert_same_training(recipe: Recipe, expected: Recipe) -> None:
    """Every step was run exactly once in effect, and the weights are those of a run without failures."""
    assert relative_difference(weights_of(recipe), weights_of(expected)) < 1e-6
    assert steps_of(recipe) == steps_of(expected) == list(range(1, len(steps_of(expected)) + 1))


@pytest.mark.slow
def test_a_killed_rank_costs_no_step_and_changes_no_weight(one_bag, undisturbed, capsys):
    recipe = one_bag("killed", {"max_failures": 0})  # which counts no attempt that has stored a checkpoint
    train_and(kill_a_rank, recipe)
    with capsys.disabled():
        difference = relative_difference(weights_of(recipe), weights_of(undisturbed))
        print(f"\na rank killed: relative weight difference {difference:.1e}")
    assert_same_training(recipe, undisturbed)


def test_a_loss_that_is_not_finite_fails_the_bag_with_the_step_and_its_rows(one_bag):
    recipe = one_bag("diverged", learning_rate=1e30, warmup_ratio=0)
    batch = r"nan at step \d+, task docstring-to-\w+, rows \[\d+(, \d+){7}\]"
    with pytest.raises(InputError, match=rf"bag-1: .* {batch}\. .*train\.learning_rate"):
        train_recipe(recipe)
    assert not glob.glob(f"{recipe.root}/models/bag-1*")


def test_more_workers_than_the_capacity_of_the_cluster(one_bag):
    recipe = one_bag("too-large", {"num_workers": 64, "start_timeout_s": 1})
    required, total = r"64 workers of \{'CPU': 0.5\}", r"\{'CPU': 2.0\} on 1 nodes"
    with pytest.raises(
        ClusterError, match=rf"{required}, .* {total}, .* 4\. .*train\.execution\.num_workers"
    ):
        train_recipe(recipe)


@pytest.mark.slow
def test_the_timeout_ends_a_silent_rank_and_the_bag_resumes(one_bag):
    recipe = one_bag("silent", {"num_workers": 2, "collective_timeout_s": 20})
    expected = one_bag("two-ranks", {"num_workers": 2})
    train_recipe(expected)
    started = time.monotonic()
    train_and(stop_a_rank, recipe)
    assert time.monotonic() - started < 300
    assert_same_training(recipe, expected)


@pytest.mark.slow
def test_a_killed_bag_goes_on_with_another_number_of_ranks_and_another_stage(one_bag, undisturbed):
    interrupt(one_bag("resized"))
    recipe = one_bag("resized", {"num_workers": 2, "zero_stage": 3})
    train_recipe(recipe)
    assert_same_training(recipe, undisturbed)
    record = artifacts.read_record(f"{recipe.root}/models/bag-1")
    assert record is not None and record.metrics.training.num_ranks == 2


@pytest.mark.slow
def test_an_incomplete_checkpoint_is_not_resumed(one_bag, undisturbed):
    recipe = one_bag("incomplete")
    root = f"{recipe.root}/checkpoints/bag-1"
    interrupt(recipe)
    uri, state = checkpoints.newest(root)
    assert state["step"] in range(2, len(steps_of(undisturbed)), 2)
    os.remove(f"{uri}/rank-0.safetensors")
    assert uri not in (checkpoints.newest(root) or ())
    train_recipe(recipe)
    assert_same_training(recipe, undisturbed)


@pytest.mark.slow
def test_the_metrics_of_a_step_are_scraped_by_prometheus_while_a_bag_trains(one_bag):
    recipe = one_bag("scraped", epochs=15)
    port = ray.nodes()[0]["MetricsExportPort"]
    gauges: dict[str, float] = {}

    def scrape(recipe: Recipe) -> None:
        deadline = time.monotonic() + 60
        while not gauges and time.monotonic() < deadline:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
                lines = response.read().decode().splitlines()
            for line in lines:
                if "boom_ray_train_" in line and 'bag="bag-1"' in line and 'run="scraped"' in line:
                    name = line.split("{")[0].rpartition("boom_ray_train_")[2]
                    gauges[name] = float(line.rpartition(" ")[2])
            time.sleep(1)

    train_and(scrape, recipe)
    steps = metrics_of(recipe)
    expected = {"loss", "grad_norm", "learning_rate", "tokens_per_second", "padding_fraction"}
    expected |= {"feed_wait", "num_ranks"}
    assert gauges.keys() == expected | {"truncated_fraction", "distinct_fraction", "similarity"}
    for name, value in gauges.items():
        assert any(value == pytest.approx(step[name], rel=1e-6) for step in steps), name


def test_a_node_that_cannot_read_the_storage_is_named(one_bag):
    from boom_ray.train.bagging import make_job
    from boom_ray.train.preparation import prepare

    recipe = one_bag("moved")
    base = directory.identify(recipe.base_model.path)
    prepared = corpus.prepare(recipe.data, f"{recipe.root}/corpus", recipe.name)
    drawn = bags.publish(prepared, recipe.bags, f"{recipe.root}/bags")
    job = make_job(recipe, 0, prepared, drawn, base, None)
    os.rename(recipe.root, f"{recipe.root}-elsewhere")
    with pytest.raises(StorageError, match=rf"{recipe.storage}: node {ray.util.get_node_ip_address()} "):
        prepare(job, "cpu")


@pytest.mark.slow
def test_a_model_that_a_disconnected_rank_has_published_is_kept(one_bag, undisturbed):
    recipe = one_bag("published-twice")

    def publish(recipe: Recipe) -> None:
        models = f"{recipe.root}/models"
        shutil.copytree(f"{undisturbed.root}/models/bag-1", f"{models}/.bag-1")
        os.rename(f"{models}/.bag-1", f"{models}/bag-1")

    train_and(publish, recipe)
    model, published = (artifacts.verify(f"{one.root}/models/bag-1") for one in (recipe, undisturbed))
    assert model == published, "the second model has not replaced it: its times would differ"
    assert not glob.glob(f"{recipe.root}/checkpoints/*")


@pytest.mark.slow
def test_training_continues_if_the_progress_actor_dies(one_bag, undisturbed):
    def kill_the_progress_actor(recipe: Recipe) -> None:
        max(processes("ray::ProgressActor"), key=psutil.Process.create_time).kill()

    recipe = one_bag("unobserved", {"max_failures": 0})
    train_and(kill_the_progress_actor, recipe)
    assert_same_training(recipe, undisturbed)

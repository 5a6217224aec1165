"""What goes wrong while bags are trained, with real kills: nothing is lost, nothing wrong is published."""

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
from safetensors.torch import load_file

from boom_ray import artifacts
from boom_ray.artifacts import checkpoints
from boom_ray.data import bags, corpus
from boom_ray.errors import BoomError
from boom_ray.model import directory
from boom_ray.pipeline.training import train as train_recipe
from boom_ray.recipe import Recipe

pytestmark = pytest.mark.usefixtures("ray_cluster")

EXECUTION = {"resources_per_worker": {"CPU": 0.5}, "save_every_steps": 2, "zero_stage": 1, "max_failures": 3}


@pytest.fixture
def one_bag(make_recipe: Any, minilm: str, tmp_path: Any) -> Callable[..., Recipe]:
    """A recipe with one bag, whose training is changed by keyword arguments."""

    def make(name: str, execution: dict[str, Any] | None = None, **train: Any) -> Recipe:
        values = {
            "batch_size": 8,
            "group_size": 3,
            "epochs": 2,
            "query_max_length": 32,
            "passage_max_length": 32,
        }
        values |= {"precision": "fp32", "execution": EXECUTION | (execution or {}), **train}
        return make_recipe(minilm, name=name, train=values, bags={"ratios": [100]}, evaluate={})

    return make


def weights_of(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load_file(f"{recipe.root}/models/bag-1/model.safetensors")


def steps_of(recipe: Recipe) -> list[int]:
    """The steps in the bag's journal."""
    with open(f"{recipe.root}/models/bag-1/metrics.jsonl", encoding="utf-8") as file:
        return [json.loads(line)["step"] for line in file]


def workers() -> list[psutil.Process]:
    """The processes that run ranks, of this session's Ray."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if "RayTrainWorker" in " ".join(process.cmdline())]


def train_and(harm: Callable[[Recipe], None], recipe: Recipe) -> None:
    """Train in a thread of its own, and do harm once there is a checkpoint."""
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
    assert thread.is_alive(), "training ended before it could be harmed"
    harm(recipe)
    thread.join()
    if errors:
        raise errors[0]


def kill_a_rank(recipe: Recipe) -> None:
    workers()[0].send_signal(signal.SIGKILL)


def stop_a_rank(recipe: Recipe) -> None:
    workers()[0].send_signal(signal.SIGSTOP)


def relative_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    square = sum((one[name].double() - other[name].double()).square().sum() for name in other)
    return (square / sum(tensor.double().square().sum() for tensor in other.values())).sqrt().item()


@pytest.mark.slow
def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint_and_no_weight(one_bag, capsys):
    clean, harmed = one_bag("clean"), one_bag("harmed")
    train_recipe(clean)
    train_and(kill_a_rank, harmed)
    difference = relative_difference(weights_of(harmed), weights_of(clean))
    with capsys.disabled():
        print(f"\na rank killed: relative weight difference {difference:.1e}")
    assert difference < 1e-6
    assert steps_of(harmed) == steps_of(clean) == list(range(1, len(steps_of(clean)) + 1))


def test_a_loss_that_is_not_finite_stops_the_bag_and_names_the_rows(one_bag):
    recipe = one_bag("broken", learning_rate=1e30, warmup_ratio=0)
    with pytest.raises(
        BoomError, match=r"bag-1: the loss became nan at step \d+, on task docstring-to-\w+, rows \["
    ):
        train_recipe(recipe)
    assert not glob.glob(f"{recipe.root}/models/bag-1*")


def test_more_workers_than_the_cluster_can_give(one_bag):
    recipe = one_bag("greedy", {"num_workers": 64, "start_timeout_s": 1})
    with pytest.raises(BoomError, match=r"asked 64 workers of \{'CPU': 0.5\}, there is \{'CPU': 2.0\}"):
        train_recipe(recipe)


@pytest.mark.slow
def test_a_rank_that_hangs_is_ended_by_the_timeout_and_the_bag_goes_on(one_bag):
    recipe = one_bag("hanging", {"num_workers": 2, "collective_timeout_s": 20})
    clean = one_bag("calm", {"num_workers": 2})
    train_recipe(clean)
    started = time.monotonic()
    train_and(stop_a_rank, recipe)
    assert time.monotonic() - started < 300
    assert relative_difference(weights_of(recipe), weights_of(clean)) < 1e-6


@pytest.mark.slow
def test_another_number_of_ranks_is_refused_before_training_goes_on(one_bag):
    recipe = one_bag("grown", {"max_failures": 0})
    with pytest.raises(BoomError, match="bag-1: "):
        train_and(kill_a_rank, recipe)
    assert checkpoints.newest(f"{recipe.root}/checkpoints/bag-1") is not None
    with pytest.raises(BoomError, match=r"saved by 1 ranks at ZeRO stage 1, now 2 ranks"):
        train_recipe(one_bag("grown", {"num_workers": 2}))
    train_recipe(one_bag("grown"))
    assert weights_of(recipe)


@pytest.mark.slow
def test_an_incomplete_checkpoint_is_never_resumed_from(one_bag):
    clean, harmed = one_bag("whole"), one_bag("holed", {"max_failures": 0})
    train_recipe(clean)
    with pytest.raises(BoomError, match="bag-1: "):
        train_and(kill_a_rank, harmed)
    uri, state = checkpoints.newest(f"{harmed.root}/checkpoints/bag-1")
    (shard, *_) = glob.glob(f"{uri}/**/*optim_states.pt", recursive=True)
    os.remove(shard)
    train_recipe(harmed)
    assert state["step"] >= 2 and relative_difference(weights_of(harmed), weights_of(clean)) < 1e-6


@pytest.mark.slow
def test_loss_and_pace_are_in_prometheus_form_while_a_bag_is_trained(one_bag):
    recipe = one_bag("watched", epochs=15)
    port = ray.nodes()[0]["MetricsExportPort"]
    found: list[str] = []

    def scrape(recipe: Recipe) -> None:
        deadline = time.monotonic() + 60
        while not found and time.monotonic() < deadline:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                lines = answer.read().decode().splitlines()
            found.extend(line for line in lines if "boom_ray_train_" in line and 'bag="bag-1"' in line)
            time.sleep(1)

    train_and(scrape, recipe)
    names = {line.split("{")[0].rpartition("boom_ray_train_")[2] for line in found}
    expected = {"loss", "grad_norm", "learning_rate", "tokens_per_second"}
    assert expected | {"padding_fraction", "distinct_fraction", "similarity"} <= names


def test_a_node_that_does_not_see_the_storage_is_named(one_bag, monkeypatch):
    from boom_ray.train.bagging import make_job
    from boom_ray.train.worker import prepare

    recipe = one_bag("apart")
    base = directory.identify(recipe.base_model.path)
    prepared = corpus.prepare(recipe.data, f"{recipe.root}/corpus", recipe.name)
    drawn = bags.publish(prepared, recipe.bags, f"{recipe.root}/bags")
    job = make_job(recipe, 0, prepared, drawn, base, None)
    os.rename(recipe.root, f"{recipe.root}-elsewhere")
    with pytest.raises(
        BoomError, match=rf"{recipe.storage}: node {ray.util.get_node_ip_address()} does not see"
    ):
        prepare(job)


@pytest.mark.slow
def test_a_bag_that_a_rank_taken_for_dead_has_published_is_done(one_bag):
    first, second = one_bag("first"), one_bag("second")
    train_recipe(first)

    def publish(recipe: Recipe) -> None:
        models = f"{recipe.root}/models"
        shutil.copytree(f"{first.root}/models/bag-1", f"{models}/.bag-1")
        os.rename(f"{models}/.bag-1", f"{models}/bag-1")

    train_and(publish, second)
    one, other = (artifacts.verify(f"{recipe.root}/models/bag-1") for recipe in (first, second))
    assert one.digest == other.digest
    assert not glob.glob(f"{second.root}/checkpoints/*")


@pytest.mark.slow
def test_who_shows_the_progress_may_die(one_bag):
    def kill_the_board(recipe: Recipe) -> None:
        below = psutil.Process().children(recursive=True)
        boards = [process for process in below if "ray::ProgressBoard" in " ".join(process.cmdline())]
        max(boards, key=psutil.Process.create_time).kill()

    recipe = one_bag("unseen", {"max_failures": 0})
    train_and(kill_the_board, recipe)
    assert weights_of(recipe)

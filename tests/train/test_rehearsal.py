"""The rehearsal: which base models are trained right, and which are refused before the first step."""

import glob
import json
import os
import shutil
import time
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from boom_ray.data import bags, corpus
from boom_ray.errors import InputError
from boom_ray.model import directory
from boom_ray.pipeline.training import train as train_recipe
from boom_ray.recipe import Recipe
from boom_ray.runs.layout import Layout
from boom_ray.train import bag_trainer
from boom_ray.train.bag_job import BagJob
from boom_ray.train.bagging import make_job
from boom_ray.train.lasting import without_retry
from boom_ray.train.progress_actor import ProgressActor
from boom_ray.train.rehearsal import header_differences, rehearse
from tests import families


def job_of(recipe: Recipe, actor: Any = None) -> BagJob:
    """The job of the first bag, with its corpus and its bags."""
    base, layout = directory.identify(recipe.base_model.path), Layout(recipe.root)
    prepared = corpus.prepare(recipe.data, layout.corpus, recipe.name)
    drawn = bags.publish(prepared, recipe.bags, layout.bags)
    return make_job(recipe, 0, prepared, drawn, base, actor)


def train_of(**settings: Any) -> dict[str, Any]:
    lengths = {"query_max_length": 64, "passage_max_length": 64}
    execution = {"resources_per_worker": {"CPU": 0.5}}
    return (
        {"batch_size": 8, "group_size": 3, "precision": "fp32", "execution": execution} | lengths | settings
    )


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_family_is_rehearsed_up_to_its_last_position(family, make_recipe, tmp_path, capsys):
    recipe = make_recipe(families.build(family, str(tmp_path / "base")), train=train_of())
    seconds = rehearse(job_of(recipe), "cpu")
    with capsys.disabled():
        print(f"\nrehearsal of {family}: {seconds:.1f} s", end="")
    assert seconds < 60
    assert not glob.glob(f"/tmp/boom-ray-rehearsal-*-{os.getpid()}-*")


@pytest.mark.parametrize("settings", [{"precision": "bf16"},
    {"matryoshka": [8, 16], "save_dtype": "bfloat16"},
    {"lora": {"rank": 2, "targets": ["all-linear"]}, "distillation": "m3_kd"},
    {"execution": {"gradient_checkpointing": True, "chunk_tokens": 64}}])  # fmt: skip
@pytest.mark.parametrize("family", ["bert-mlm", "llama"])
def test_settings_are_rehearsed(family, settings, make_recipe, tmp_path):
    rehearse(
        job_of(make_recipe(families.build(family, str(tmp_path / "base")), train=train_of(**settings))), "cpu"
    )


def phobert(path: str) -> str:
    return families.build_phobert(path)


def embeddings_of_fewer_tokens(path: str) -> str:
    """A tokenizer with more tokens than the model has embeddings."""
    families.build("bert", path)
    torch.manual_seed(0)
    BertModel(BertConfig.from_pretrained(path, vocab_size=30)).save_pretrained(path)
    return path


def positions_that_the_files_lack(path: str) -> str:
    """A configuration that declares ALiBi, so that longer texts look allowed."""
    families.build("bert", path)
    config = os.path.join(path, "config.json")
    with open(config, encoding="utf-8") as file:
        values = json.load(file)
    with open(config, "w", encoding="utf-8") as file:
        json.dump(values | {"position_embedding_type": "alibi"}, file)
    return path


def unknown_tokens(path: str) -> str:
    """A vocabulary of a script that no row uses."""
    families.build("bert", path)
    name = os.path.join(path, "tokenizer.json")
    with open(name, encoding="utf-8") as file:
        values = json.load(file)
    vocabulary = values["model"]["vocab"]
    values["model"]["vocab"] = {
        token if token.startswith("[") and token.endswith("]") and len(token) > 2 else f"\u4e00{index}": index
        for token, index in vocabulary.items()
    }
    with open(name, "w", encoding="utf-8") as file:
        json.dump(values, file)
    return path


def not_finite(path: str) -> str:
    families.build("bert", path)
    name = os.path.join(path, "model.safetensors")
    weights = load_file(name)
    weights["embeddings.LayerNorm.weight"][0] = torch.nan
    save_file(weights, name, {"format": "pt"})
    return path


REFUSED = [
    (phobert, {}, r"PhobertTokenizer"),
    (embeddings_of_fewer_tokens, {}, r"base_model\.path"),
    (positions_that_the_files_lack, {"max_length": 100}, r"100 tokens.*base_model\.max_length"),
    (unknown_tokens, {}, r"tokenizer.*base_model\.path"),
    (not_finite, {}, r"not finite"),
]


@pytest.mark.parametrize(
    ("build", "source", "message"), REFUSED, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_base_model_that_cannot_be_trained_is_refused(build, source, message, make_recipe, tmp_path):
    base = build(str(tmp_path / "base"))
    recipe = make_recipe(base, base_model={"path": base, **source}, train=train_of())
    with pytest.raises(InputError, match=message):
        rehearse(job_of(recipe), "cpu")


def test_tensors_are_compared_with_those_of_the_base_model(tmp_path):
    from boom_ray.artifacts.tensors import read_places

    plain = families.build("bert", str(tmp_path / "plain"))
    headed = families.build("bert-mlm", str(tmp_path / "headed"))
    ours, base = read_places(plain), read_places(headed)
    problems = header_differences(ours, base)
    assert [line.split(":")[0] for line in problems] == ["pooler.dense.bias", "pooler.dense.weight"]
    assert not header_differences({n: p for n, p in ours.items() if not n.startswith("pooler")}, base)
    other = read_places(families.build("albert", str(tmp_path / "albert")))
    assert len(header_differences(other, base)) == 4


@pytest.mark.parametrize(
    ("error", "lasts"),
    [
        (IndexError("index out of range in self"), r"train\.passage_max_length"),
        (RuntimeError("The size of tensor a (65) must match the size of tensor b (64)"), r"base_model\.path"),
        (RuntimeError('"addmm_impl_cpu_" not implemented for \'Half\''), r"train\.precision"),
        (KeyError("hidden_size"), r"base_model\.path"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), None),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a size of 2 GiB"), None),
        (torch.distributed.DistBackendError("NCCL error: remote process exited, shape"), None),
        (ConnectionResetError("reset"), None),
    ],
)  # fmt: skip
def test_only_failures_that_may_pass_are_retried(error, lasts):
    with pytest.raises(InputError if lasts else type(error), match=lasts), without_retry("base"):
        raise error


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_failure_in_a_rank_that_lasts_ends_the_bag_at_its_first_attempt(make_recipe, tmp_path):
    """Without a rehearsal, the first text has a token that the model has no embedding of."""
    base = embeddings_of_fewer_tokens(str(tmp_path / "base"))
    actor: Any = ProgressActor.remote()  # type: ignore[attr-defined]
    error = bag_trainer.fit(job_of(make_recipe(base, train=train_of()), actor))
    assert isinstance(error, InputError) and "base_model.path" in str(error)


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_is_refused_before_its_first_bag_and_rehearsed_once(make_recipe, tmp_path, capsys):
    base = positions_that_the_files_lack(str(tmp_path / "base"))
    recipe = make_recipe(base, base_model={"path": base, "max_length": 100}, train=train_of())
    started = time.monotonic()
    with pytest.raises(InputError, match=r"base_model\.max_length"):
        train_recipe(recipe)
    seconds = time.monotonic() - started
    assert not glob.glob(f"{recipe.root}/ray_train*") and not os.path.exists(Layout(recipe.root).rehearsal)
    shutil.rmtree(recipe.root)

    recipe = make_recipe(base, train=train_of(max_steps=1))
    (uri,) = train_recipe(recipe, only=0)
    rehearsed = os.stat(Layout(recipe.root).rehearsal).st_mtime_ns
    shutil.rmtree(uri)
    train_recipe(recipe, only=0)
    assert os.stat(Layout(recipe.root).rehearsal).st_mtime_ns == rehearsed
    with capsys.disabled():
        print(f"\nrefused after {seconds:.1f} s")

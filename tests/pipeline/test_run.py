"""The whole pipeline on a small real corpus, and a rerun that finishes what is missing and nothing else."""

import json
import os
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from sentence_transformers import SentenceTransformer

from boom_ray import artifacts, storage
from boom_ray.artifacts import ModelRecord
from boom_ray.cli import main
from boom_ray.errors import BoomError
from boom_ray.model import adapter, directory, self_test
from boom_ray.pipeline.merge_choice import SCALES
from boom_ray.pipeline.reproduce import reproduce
from boom_ray.pipeline.run import run
from boom_ray.pipeline.training import train
from boom_ray.recipe import Recipe, identity
from boom_ray.runs import status
from tests import texts
from tests.conftest import copy_run, recipe_values

pytestmark = pytest.mark.usefixtures("ray_cluster")


def modification_times(root: str) -> dict[str, int]:
    """Modification time of every file of the bags' models, in ns."""
    return {
        name: info.mtime_ns for name, info in storage.list_files(f"{root}/models").items() if "bag-" in name
    }


@pytest.fixture(params=[pytest.param("bert", marks=pytest.mark.slow), "qwen3"])
def recipe(request, corpus_files, beir, tmp_path) -> Recipe:
    """The recipe of a finished run of each base model: of one in bf16, an adapter and all weights; both in
    fp32, all weights, of the other.

    The run in bf16 chooses its scale.
    """
    if request.param == "qwen3":
        return copy_run(request.getfixturevalue("finished_run").recipe, str(tmp_path / "runs"))
    values = recipe_values(request.getfixturevalue("bert"), corpus_files, beir, str(tmp_path / "runs"))
    lora = {"rank": 2, "targets": ["all-linear"]}
    values["train"] |= {"precision": "bf16", "lora": lora, "learning_rate": 1e-3}
    values["bags"]["ratios"][1] = {"ratio": 100, "lora": None, "learning_rate": 2e-5}
    values["merge"]["scale"] = "auto"
    values["evaluate"] |= {"data": f"{beir}/out_of_domain", "development": str(tmp_path / "development")}
    shutil.copytree(f"{beir}/in_domain", tmp_path / "development")
    made = Recipe.model_validate(values)
    run(made)
    return made


def test_from_corpus_to_a_measured_model(recipe, tmp_path):
    records = {name: artifacts.verify(f"{recipe.root}/models/{name}") for name in ("bag-1", "bag-2", "v0001")}
    before = modification_times(recipe.root)
    result = run(recipe)
    target = result.model
    assert target == f"{recipe.root}/models/v0001"
    assert before == modification_times(recipe.root), "a second run trains nothing"
    merged = records["v0001"]
    assert merged == artifacts.verify(target) == result.record
    assert [parent.digest for parent in merged.parents] == [records["bag-1"].digest, records["bag-2"].digest]
    assert records["bag-1"].config.rows < records["bag-2"].config.rows
    assert records["bag-1"].digest != records["bag-2"].digest != merged.digest
    for index, bag in enumerate(recipe.bags.ratios):
        training = records[f"bag-{index + 1}"].config.training
        assert training.bag == bag and identity(training.settings) == identity(recipe.train_of(index))
        assert adapter.is_adapter(f"{recipe.root}/models/bag-{index + 1}") == bool(training.settings.lora)
        assert records[f"bag-{index + 1}"].seed == training.settings.seed
        last = records[f"bag-{index + 1}"].metrics.training.step
        assert training.averaged == ([last - 3, last] if recipe.train.average else [])
    assert np.allclose(merged.self_test, self_test.compute(target), atol=1e-5)
    assert merged.config.merge.method == "multislerp" and merged.config.merge.space == "deltas"

    results = json.loads(storage.read_bytes(f"{recipe.root}/evaluation.json"))
    assert list(results["evaluation"]) == ["base", "bag-1", "bag-2", "merged"]
    score = results["means"]["merged"]["all"]["ndcg@10"]
    with open(os.path.join(target, "README.md"), encoding="utf-8") as file:
        card = file.read()
    assert f"{score:.3f}" in card and result.scores.means["merged"]["all"]["ndcg@10"] == score
    assert result.scores.to_frame().loc["mean all", "merged"] == score
    assert result.comparison == result.record.metrics.comparison is not None

    pieces = [text for pair in texts.functions("email") for text in pair][:20]
    ours = directory.load_encoder(target).encode(pieces)
    theirs = SentenceTransformer(target, device="cpu").encode(pieces)
    assert (ours * theirs).sum(1).min() >= 0.99999
    unchanged = directory.load_encoder(recipe.base_model.path, recipe.base_model).encode(pieces)
    assert np.abs(ours - unchanged).max() > 1e-4, "the merged model is not its base"

    status_json = str(tmp_path / "status.json")
    outcome = CliRunner().invoke(main, ["status", recipe.root, "--json", status_json])
    assert outcome.exit_code == 0 and f"evaluation: done: mean score {score:.3f}" in outcome.output
    report = json.loads(storage.read_bytes(status_json))
    assert (report["state"], report["current"]) == ("done", "v0001")
    assert report["drivers"][0]["state"] == "done"
    assert {part["state"] for part in report["making"]["v0001"]} == {"done"}

    if recipe.merge.scale == "auto":
        check_choice(recipe, merged, results)
    linear = recipe.model_copy(update={"merge": recipe.merge.model_copy(update={"method": "linear"})})
    with pytest.raises(BoomError, match=r"merge\.method: multislerp in the run, linear in the recipe"):
        run(linear)


def check_choice(recipe: Recipe, merged: ModelRecord, results: dict) -> None:
    """The scale is chosen on other tasks than those of the report, and an interrupted choice is continued."""
    search, development = merged.metrics.search, recipe.evaluate.development
    assert search.development == artifacts.hash_tree(development) and len(search.scores) == len(SCALES)
    assert search.chosen == f"multislerp x{merged.config.merge.scale:g}"
    assert list(results["evaluation"]["merged"]) == ["asyncio"]

    def measurements() -> dict[str, int]:
        return {name: info.mtime_ns for name, info in storage.list_files(f"{recipe.root}/evaluation").items()}

    before = measurements()
    shutil.rmtree(f"{recipe.root}/models/v0001")
    assert run(recipe).record.digest == merged.digest and measurements() == before
    assert not [name for name in os.listdir(f"{recipe.root}/models") if name.startswith(".")]
    with open(f"{development}/more", "w") as file:
        file.write("x")
    with pytest.raises(BoomError, match=r"merge\.development: \w+ in the run, \w+ in the recipe"):
        run(recipe)
    os.remove(f"{development}/more")


@pytest.mark.slow
def test_a_run_without_evaluation_tasks_is_refused_before_training(make_recipe, qwen3, tmp_path):
    recipe = make_recipe(qwen3, evaluate={"data": str(tmp_path / "evla")})
    with pytest.raises(BoomError, match="evla: no tasks there"):
        run(recipe)
    assert not os.path.exists(recipe.root)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["bert"], indirect=True)
def test_a_run_with_a_chosen_scale_is_made_again_without_its_development_tasks(recipe, tmp_path):
    shutil.rmtree(recipe.evaluate.development)
    original, again = reproduce(f"{recipe.root}/models/v0001", str(tmp_path / "again"))
    assert original.digest == again.digest and original.metrics.search == again.metrics.search


@pytest.mark.slow
def test_bags_that_fail_or_are_trained_alone_leave_the_others_as_they_are(make_recipe, qwen3):
    recipe = make_recipe(qwen3, evaluate={})
    assert identity(recipe.train).keys().isdisjoint({"execution"})
    obstacle = f"{recipe.root}/models/bag-2"
    os.makedirs(obstacle)
    with open(f"{obstacle}/precious", "w") as file:
        file.write("x")
    with pytest.raises(BoomError, match=r"bag-2: .*not an artifact"):
        run(recipe)
    artifacts.verify(f"{recipe.root}/models/bag-1")
    assert not os.path.exists(f"{recipe.root}/models/v0001")
    report = status.read(recipe.root)
    bags = {part.name: part for part in report.making["v0001"] if part.name.startswith("bag-")}
    assert report.state == "failed" and "1 of 2 bags failed" in report.reason
    assert bags["bag-1"].state == "done" and bags["bag-2"].state == "failed"
    assert f"{obstacle}: " in bags["bag-2"].detail
    os.remove(f"{obstacle}/precious")
    os.rmdir(obstacle)

    before = modification_times(recipe.root)
    assert {name.split("/")[0] for name in before} == {"bag-1"}
    assert train(recipe, only=1) == [f"{recipe.root}/models/bag-2"]
    alone = modification_times(recipe.root)
    assert before.items() < alone.items()
    assert {name.split("/")[0] for name in alone} == {"bag-1", "bag-2"}
    run(recipe)
    assert alone.items() <= modification_times(recipe.root).items()
    assert artifacts.verify(f"{recipe.root}/models/v0001").config.rows > 0

"""The whole pipeline on a small real corpus, and a rerun that finishes what is missing and nothing else."""

import json
import os

import numpy as np
import pytest
from click.testing import CliRunner
from sentence_transformers import SentenceTransformer

from boom_ray import artifacts, storage
from boom_ray.cli import main
from boom_ray.errors import BoomError
from boom_ray.model import directory, self_test
from boom_ray.pipeline.run import run
from boom_ray.pipeline.training import train
from boom_ray.recipe import identity
from boom_ray.runs import status
from tests import texts

pytestmark = pytest.mark.usefixtures("ray_cluster")


def states(root: str) -> dict[str, int]:
    """Modification time of every file of the bags' models."""
    return {
        name: info.mtime_ns for name, info in storage.list_files(f"{root}/models").items() if "bag-" in name
    }


@pytest.mark.parametrize("base", ["minilm", "qwen3"])
def test_from_corpus_to_a_measured_model(base, make_recipe, request):
    recipe = make_recipe(request.getfixturevalue(base))
    result = run(recipe)
    target = result.model

    records = {name: artifacts.verify(f"{recipe.root}/models/{name}") for name in ("bag-1", "bag-2", "v0001")}
    merged = records["v0001"]
    assert [parent.digest for parent in merged.parents] == [records["bag-1"].digest, records["bag-2"].digest]
    assert records["bag-1"].config.rows < records["bag-2"].config.rows
    assert records["bag-1"].digest != records["bag-2"].digest != merged.digest
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

    before = states(recipe.root), merged
    assert run(recipe).model == target
    assert before == (states(recipe.root), artifacts.verify(target)), "a second run makes nothing anew"
    told = CliRunner().invoke(main, ["status", recipe.root, "--json", f"{recipe.root}/status.json"])
    assert told.exit_code == 0 and f"evaluation: done: mean score {score:.3f}" in told.output
    found = json.loads(storage.read_bytes(f"{recipe.root}/status.json"))
    assert (found["state"], found["current"]) == ("done", "v0001") and found["drivers"][0]["state"] == "done"
    assert {part["state"] for part in found["making"]["v0001"]} == {"done"}

    with pytest.raises(BoomError) as caught:
        run(make_recipe(request.getfixturevalue(base), merge={"method": "linear", "dtype": "float32"}))
    assert "merge.method: multislerp there, linear in the recipe" in str(caught.value)


@pytest.mark.slow
def test_a_run_without_evaluation_tasks_is_refused_before_training(make_recipe, qwen3, tmp_path):
    recipe = make_recipe(qwen3, evaluate={"data": str(tmp_path / "evla")})
    with pytest.raises(BoomError, match="evla: no tasks there"):
        run(recipe)
    assert not os.path.exists(recipe.root)


def test_one_bag_can_be_trained_alone_and_the_next_run_trains_the_other(make_recipe, qwen3):
    recipe = make_recipe(qwen3, evaluate={})
    assert train(recipe, only=1) == [f"{recipe.root}/models/bag-2"]
    before = states(recipe.root)
    assert {name.split("/")[0] for name in before} == {"bag-2"}
    run(recipe)
    assert before.items() <= states(recipe.root).items()
    assert artifacts.verify(f"{recipe.root}/models/v0001").config.rows > 0
    assert identity(recipe.train).keys().isdisjoint({"execution"})


def test_a_failing_bag_does_not_discard_the_others(make_recipe, qwen3):
    recipe = make_recipe(qwen3, evaluate={})
    train(recipe, only=0)
    in_the_way = f"{recipe.root}/models/bag-2"
    os.makedirs(in_the_way)
    with open(f"{in_the_way}/precious", "w") as file:
        file.write("x")
    with pytest.raises(BoomError, match=r"bag-2: .*not an artifact"):
        run(recipe)
    artifacts.verify(f"{recipe.root}/models/bag-1")
    assert not os.path.exists(f"{recipe.root}/models/v0001")
    found = status.read(recipe.root)
    bags = {part.name: part for part in found.making["v0001"] if part.name.startswith("bag-")}
    assert found.state == "failed" and "1 of 1 bags failed" in found.reason
    assert bags["bag-1"].state == "done" and bags["bag-2"].state == "failed"
    assert f"{in_the_way}: " in bags["bag-2"].detail
    os.remove(f"{in_the_way}/precious")
    os.rmdir(in_the_way)
    run(recipe)
    artifacts.verify(f"{recipe.root}/models/v0001")

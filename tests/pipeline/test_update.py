"""Updates: one small model adds new data, the parent stays, and each version can be reproduced."""

import json
import math
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from pydantic import ValidationError

from boom_ray import artifacts, storage
from boom_ray.cli import main
from boom_ray.errors import BoomError
from boom_ray.model import self_test
from boom_ray.pipeline.reproduce import reproduce
from boom_ray.pipeline.update import measure
from boom_ray.pipeline.update.cost import cost
from boom_ray.pipeline.update.make import update
from boom_ray.recipe import Merge, Recipe, Task, UpdateMerge
from boom_ray.report.collect import collect
from boom_ray.report.render import page
from boom_ray.runs import status, updates, versions
from boom_ray.runs.layout import Layout
from boom_ray.runs.updates import UpdateRequest, parse_requirements, read_tasks
from tests import texts
from tests.conftest import UPDATE_SCALE, copy_run, done
from tests.merge.oracle import textbook
from tests.merge.test_actors import tensors_of
from tests.pages import Reader

pytestmark = pytest.mark.usefixtures("ray_cluster")


def new_rows(path: Any, package: str) -> str:
    """A task of a package that the corpus has not."""
    pairs = list(texts.functions(package))[:24]
    return texts.write_jsonl(str(path), [{"query": text, "pos": [code]} for text, code in pairs])


def wanted(parent: str | None, tasks: list[Task], **settings: Any) -> UpdateRequest:
    scale = 1.0 if settings.get("flat") else UPDATE_SCALE
    return UpdateRequest(parent=parent, tasks=tasks, **{"scale": scale} | settings)


@pytest.fixture(scope="module")
def run(finished_update, http_tasks, tmp_path_factory) -> tuple[Recipe, str, str]:
    """A run with v0001 and v0002, the rows that v0002 added, and an evaluation of them."""
    root = tmp_path_factory.mktemp("updated")
    rows, evaluation = http_tasks
    shutil.copy(rows, root)
    return copy_run(finished_update.recipe, str(root / "runs")), f"{root}/http.jsonl", evaluation


@pytest.fixture(scope="module")
def child(run) -> str:
    """The update's version."""
    return Layout(run[0].root).model("v0002")


def test_requirements_are_read_or_refused():
    assert parse_requirements("old_mean >= -0.5%, new_mean >= +1%") == {"old_mean": -0.5, "new_mean": 1.0}
    for text in ("old_mean > 1%", "mean >= 1%", "new_mean >= 1"):
        with pytest.raises(BoomError, match="expected old_mean"):
            parse_requirements(text)


def test_new_data_is_a_file_of_rows_or_a_list_of_tasks(tmp_path):
    (task,) = read_tasks(f"{tmp_path}/week 12.jsonl")
    assert (task.name, task.type) == ("week-12", "retrieval")
    (tmp_path / "new.yaml").write_text("- {name: a, path: a.jsonl, type: sts}\n")
    (task,) = read_tasks(f"{tmp_path}/new.yaml")
    assert (task.name, task.type, task.path) == ("a", "sts", f"{tmp_path}/a.jsonl")
    (tmp_path / "bad.yaml").write_text("- {name: a, file: a.jsonl}\n")
    with pytest.raises(BoomError, match="not a list of tasks"):
        read_tasks(f"{tmp_path}/bad.yaml")


def test_an_update_makes_a_child_that_names_its_parent_and_can_be_made_again(run, child, tmp_path):
    recipe, rows, evaluation = run
    child_uri = child
    parent, child = (artifacts.verify(f"{recipe.root}/models/{version}") for version in ("v0001", "v0002"))
    assert child_uri.endswith("v0002") and child.parents[0].digest == parent.digest != child.digest
    small = artifacts.verify(f"{recipe.root}/updates/v0002/models/bag-1")
    assert child.config.rows == parent.config.rows + small.config.rows
    sizes = artifacts.read_record(f"{recipe.root}/corpus").config.tasks
    core = artifacts.read_record(f"{recipe.root}/core/v0001-40").config.rows
    assert core == {name: round(0.4 * counts.rows) for name, counts in sizes.items()}
    assert small.config.rows == sum(core.values()) + 24
    assert set(child.metrics.update.change) == {"old_mean", "new_mean"}
    assert child.self_test == pytest.approx(self_test.compute(child_uri), abs=1e-5) != parent.self_test

    merge = child.config.merge
    assert (merge.scale, merge.scale_from) == (UPDATE_SCALE, "parent") and merge.dtype == "float32"
    paths = (f"{recipe.root}/{path}" for path in ("models/v0001", "updates/v0002/models/bag-1"))
    inputs, base = [tensors_of(path) for path in paths], tensors_of(recipe.base_model.path)
    for name, tensor in tensors_of(child_uri).items():
        origin = base.get(name, base.get(f"model.{name}"))
        models = [model[name] for model in inputs]
        expected = textbook(merge.method, models, [0.5, 0.5], origin, UpdateMerge(scale=UPDATE_SCALE))
        assert torch.allclose(tensor.double(), expected, rtol=1e-6, atol=1e-9), name

    request = wanted("v0001", read_tasks(rows), new_evaluation=evaluation)
    assert update(recipe, request).model == child_uri, "the same request is the same child"
    assert versions.current(recipe.root) == "v0002"
    os.rename(rows, f"{rows}.gone")
    try:
        original, again = reproduce(child_uri, str(tmp_path / "again"))
    finally:
        os.rename(f"{rows}.gone", rows)
    assert original.digest == again.digest, "made of the rows that the run has kept"


@pytest.mark.slow
def test_a_first_version_is_made_again_with_the_same_digest(run, tmp_path):
    recipe, _, _ = run
    original, again = reproduce(f"{recipe.root}/models/v0001", str(tmp_path / "again"))
    assert original.digest == again.digest


def test_pages_of_a_run_and_of_its_update(run, child):
    recipe, _, _ = run
    records = {name: artifacts.verify(f"{recipe.root}/models/{name}") for name in ("v0001", "v0002")}
    first, second = (Reader(page(collect(recipe.root, version))) for version in records)
    means = records["v0001"].metrics.means
    for label in ("base", "merged"):
        assert f"{means[label]['all']['ndcg@10']:.3f}" in first.text
    measured = records["v0002"].metrics.update
    cost = measured.cost
    for kind in ("old", "new"):
        for task, scores in measured.scores[kind]["child"].items():
            others = [measured.scores[kind][label][task]["ndcg@10"] for label in ("parent", "update")]
            assert [task, *(f"{score:.3f}" for score in (*others, scores["ndcg@10"]))] in second.rows
        difference = measured.comparisons[kind].means["all"]
        assert f"{difference.ours:.3f} compared with {difference.theirs:.3f} on average" in second.text
    again = f"{cost.all_steps:,} steps, {cost.all_rows:,} rows and about {cost.all_tokens:,} tokens"
    assert again in second.text
    assert "24 new rows of 1 task (http)" in second.text
    assert measured.comparisons.keys() == {"old", "new"} and "tasks better than v0001" in second.text
    for reader, bars in ((first, ["bag-1", "bag-2"]), (second, ["update"])):
        labels = [row[0] for row in reader.rows]
        assert all(name in labels for name in ["corpus", *bars, "merge", "evaluate"])
        assert records["v0001"].digest in reader.text and recipe.root in reader.text


def test_a_request_without_a_parent_resumes_or_starts_from_the_current_version(run, child, tmp_path):
    recipe, rows, _ = run
    assert update(recipe, wanted(None, read_tasks(rows))).model == child, "found though v0002 is current now"
    other = read_tasks(new_rows(tmp_path / "dom.jsonl", "xml/dom"))
    for request in (
        wanted("v0002", read_tasks(rows)),
        wanted(None, read_tasks(rows), method="linear"),
        wanted(None, read_tasks(rows), core_percent=30),
        wanted(None, read_tasks(rows), scale=0.7),
        wanted(None, other),
    ):
        assert updates.find(recipe, request) is None


def test_concurrent_requests_get_different_versions(make_recipe, qwen3, corpus_files):
    recipe = make_recipe(qwen3)
    os.makedirs(f"{recipe.root}/models/v0001")
    tasks, together = read_tasks(corpus_files["docstring-to-code"]), threading.Barrier(8)

    def begin(number: int) -> str:
        together.wait()
        return updates.begin(recipe, wanted("v0001", tasks, core_percent=10 + number))

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(begin, range(8)))
    assert sorted(taken) == [f"v{number:04d}" for number in range(2, 10)]
    for number, version in enumerate(taken):
        request = wanted(None, tasks, core_percent=10 + number)
        assert updates.find(recipe, request) == (request.model_copy(update={"parent": "v0001"}), version)


def test_tasks_of_earlier_updates_are_old_tasks_of_later_ones(run, child):
    recipe, rows, evaluation = run
    tasks = read_tasks(rows)
    first = measure.task_sets(recipe, wanted("v0001", tasks, new_evaluation=evaluation))
    assert first == {"old": {recipe.evaluate.data: ""}, "new": {evaluation: ""}}
    later = measure.task_sets(recipe, wanted("v0002", tasks))
    assert later == {"old": {recipe.evaluate.data: "", evaluation: "v0002/"}}
    again = measure.task_sets(recipe, wanted("v0002", tasks, new_evaluation=evaluation))
    assert again == first, "what is new once more is not old as well"


def test_impossible_requests_are_refused_before_training(run, child, tmp_path):
    recipe, rows, _ = run
    tasks = read_tasks(new_rows(tmp_path / "dom.jsonl", "xml/dom"))
    no_old = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"data": None})})
    other_merge = recipe.model_copy(update={"merge": recipe.merge.model_copy(update={"space": "weights"})})
    more = recipe.data.model_copy(update={"tasks": [*recipe.data.tasks, *tasks]})
    refusals = [
        (recipe, wanted("v0007", tasks), "no such version"),
        (
            recipe,
            wanted("v0002", read_tasks(rows), core_percent=30),
            "v0002 already has a task http",
        ),
        (
            recipe,
            wanted("v0001", tasks, new_evaluation=f"{tmp_path}/none"),
            "no tasks there",
        ),
        (
            recipe,
            wanted("v0001", tasks, requirements={"new_mean": 1.0}),
            "Set new_evaluation",
        ),
        (
            no_old,
            wanted("v0001", tasks, requirements={"old_mean": 1.0}),
            "evaluate.data in the recipe",
        ),
        (
            recipe,
            wanted("v0001", tasks, method="slerp", flat=True),
            "slerp merges 2 models; got 3",
        ),
        (
            other_merge,
            wanted("v0001", tasks),
            "merge.space: deltas in the run, weights in the recipe",
        ),
        (
            recipe.model_copy(update={"data": more}),
            wanted("v0001", tasks),
            "data.tasks dom: None in the run",
        ),
    ]
    with pytest.raises(ValidationError, match="method"):
        wanted("v0001", tasks, method="mean")
    with pytest.raises(ValidationError, match=r"scale: got 0\.7 with flat"):
        wanted("v0001", tasks, flat=True, scale=0.7)
    doubled = recipe.model_copy(update={"merge": Merge(scale=2)})
    assert wanted("v0001", tasks, flat=True).merge(doubled) == Merge(scale=2)
    assert wanted("v0001", tasks, scale=1).merge(doubled).scale == 1
    before = sorted(os.listdir(f"{recipe.root}/updates"))
    for used, request, message in refusals:
        with pytest.raises(BoomError, match=message):
            update(used, request)
    assert sorted(os.listdir(f"{recipe.root}/updates")) == before


def test_the_cost_of_all_bags_is_estimated_from_tokens_of_the_update(run, child):
    recipe, _, _ = run
    trained = f"{recipe.root}/updates/v0002/models/bag-1"
    spent, record = cost(recipe, "v0002", trained), artifacts.read_record(trained)
    assert (spent.rows, spent.steps) == (record.config.rows, record.metrics.training.step)
    with open(f"{trained}/metrics.jsonl", encoding="utf-8") as file:
        steps = [json.loads(line) for line in file]
    assert spent.tokens == sum(step["tokens"] for step in steps)
    tokens, sizes = 0.0, {"http": 24, **corpus_sizes(recipe)}
    for task, size in sizes.items():
        mean = fmean(step["tokens"] for step in steps if step["task"] == task)
        for bag in recipe.bags.ratios:
            tokens += mean * math.ceil(round(size * bag.ratio_of(task) / 100) / recipe.train.batch_size)
    assert spent.all_tokens == round(tokens) > spent.tokens


def corpus_sizes(recipe: Recipe) -> dict[str, int]:
    record = artifacts.read_record(f"{recipe.root}/corpus")
    return {name: counts.rows for name, counts in record.config.tasks.items()}


def test_a_run_means_its_current_version(run, child):
    recipe, _, _ = run
    assert versions.model_at(recipe.root) == f"{recipe.root}/models/{versions.current(recipe.root)}"
    assert versions.model_at(child) == child and versions.model_at("hf://owner/name") == "hf://owner/name"


@pytest.mark.slow
def test_a_child_worse_than_required_is_not_published(run, child, tmp_path):
    recipe, _, _ = run
    rows = new_rows(tmp_path / "dom.jsonl", "xml/dom")
    evaluation = str(tmp_path / "new")
    texts.write_beir(f"{evaluation}/search", list(texts.functions("xml/dom"))[24:34])
    pairs = list(texts.functions("xml/dom"))[:8]
    likeness = [
        {"sentence1": one, "sentence2": pairs[n % 3][1], "score": n} for n, (one, _) in enumerate(pairs)
    ]
    texts.write_jsonl(f"{evaluation}/likeness/test.jsonl", likeness)
    request = UpdateRequest(
        parent="v0001",
        tasks=read_tasks(rows),
        new_evaluation=evaluation,
        requirements=parse_requirements("new_mean >= 500%"),
    )
    with pytest.raises(
        BoomError, match=r"worse than required and is not published:\n.*new_mean: .* required \+500 %"
    ):
        update(recipe, request)
    assert not os.path.exists(f"{recipe.root}/models/v0003")
    found = status.read(recipe.root)
    last = found.making["v0003"][-1]
    assert found.state == last.state == "failed" and last.name == "evaluation" and "500 %" in last.detail


def test_versions_are_listed_compared_drawn_and_rolled_back(run, child):
    recipe, _, _ = run

    from boom_ray.runtime.console import console

    with console.capture() as capture:
        done("models", recipe.storage)
        done("lineage", child)
    shown = capture.get()
    assert "v0001" in shown and "v0002  (current)" in shown and "bag-1" in shown
    assert "2 tasks" in shown and "+http" in shown and "v0001, update of v0002" in shown
    assert f"scale {UPDATE_SCALE} from the parent" in shown
    corpus = artifacts.read_record(f"{recipe.root}/corpus")
    assert corpus.digest in shown and f"seed {recipe.train.seed}" in shown
    different = done("models", "diff", f"{recipe.root}/models/v0001", child)
    assert "config.rows: " in different and "parents: " in different
    scores = [
        artifacts.verify(f"{recipe.root}/models/v0001").metrics.evaluation["merged"],
        artifacts.verify(child).metrics.update.scores["old"]["child"],
    ]
    for task in scores[0]:
        before, after = (f"{found[task]['ndcg@10']:.4f}" for found in scores)
        assert (f"score {task}: {before} -> {after}" in different) == (before != after)
    done("models", "rollback", recipe.root, "v0001")
    assert versions.current(recipe.root) == "v0001"
    assert json.loads(storage.read_bytes(f"{recipe.root}/current.json"))["version"] == "v0001"
    nothing = CliRunner().invoke(main, ["models", f"{recipe.root}/models"])
    assert nothing.exit_code == 1 and "no run here or directly below" in nothing.output
    refused = CliRunner().invoke(main, ["models", "rollback", recipe.root, "v0009"])
    assert refused.exit_code == 1 and "no version v0009; versions: v0001, v0002" in refused.output


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"flat": True}, {"weights": "mass"}, {}])
def test_updates_in_a_chain_flat_or_by_mass(run, tmp_path, how):
    recipe, rows, _ = run
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"data": None})})
    first = update(recipe, wanted("v0001", read_tasks(rows), core_percent=50, **how))
    new = read_tasks(new_rows(tmp_path / "xml.jsonl", "xml/dom"))
    later = UpdateRequest(parent=storage.name_of(first.model), tasks=new, **how)
    made = update(recipe, later).model
    record = artifacts.verify(made)
    core = artifacts.read_record(f"{recipe.root}/core/{later.parent}-40").config.rows
    assert set(core) == {"docstring-to-code", "docstring-to-package", "http"}
    assert record.config.update.leaves == [
        "models/bag-1",
        "models/bag-2",
        *(f"updates/{version}/models/bag-1" for version in (later.parent, record.version)),
    ]
    assert len(record.parents) == (4 if how.get("flat") else 2)
    if how.get("weights") == "mass":
        assert record.config.merge.weights[0] > record.config.merge.weights[1]
    os.remove(tmp_path / "xml.jsonl")
    original, again = reproduce(made, str(tmp_path / "again"))
    assert original.digest == again.digest

"""The core sample of an update knows the answers of rows that it leaves out."""

import json

import numpy as np
import pytest

from boom_ray.data import corpus
from boom_ray.data.answers import hash_of
from boom_ray.pipeline.update.core import core_sample
from boom_ray.recipe import Recipe
from boom_ray.runs.layout import Layout


@pytest.mark.parametrize("type", ["retrieval", "sts"])
def test_answers_of_rows_that_are_not_sampled_still_count(tmp_path, type):
    rows = [{"query": f"q{i % 8}", "pos": [f"a{i}"], "neg": [f"n{i}"]} for i in range(40)]
    rows += [{"query": f"a{i}", "pos": [f"b{i}"]} for i in range(0, 40, 7)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [{"name": "t", "path": str(tmp_path / "t.jsonl"), "type": type}]
    recipe = Recipe.model_validate(
        {"name": "r", "storage": str(tmp_path), "base_model": "base", "data": {"tasks": tasks}}
    )
    whole = Layout(recipe.root).corpus
    corpus.prepare(recipe.data, whole, "r")
    (task,) = core_sample(recipe, "v0001", 40)
    (again,) = core_sample(recipe, "v0001", 40)
    assert task == again
    core = str(tmp_path / "core-corpus")
    made = corpus.prepare(recipe.data.model_copy(update={"tasks": [task]}), core, "core")
    assert made.config.tasks["t"].rows == round(0.4 * len(rows))
    expected, found = corpus.load_answers(whole, task), corpus.load_answers(core, task)
    sampled = list(corpus.load_task(core, "t"))
    assert any(row["answers"] for row in sampled)
    for row in sampled:
        assert np.array_equal(found.of(row), expected.of(row))
        if row["query"].startswith("q"):
            number = int(row["query"][1:])
            assert {hash_of(f"a{i}") for i in range(number, 40, 8)} <= set(found.of(row).tolist())

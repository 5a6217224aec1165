"""No input is answered by a traceback: random and damaged files, values and command lines.

Each test has many more examples with `--slow` than without.
"""

import json
import os
import random
import tempfile
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from boom_ray import artifacts
from boom_ray.data import rows
from boom_ray.evaluation import local_tasks
from boom_ray.evaluation.beir import read_beir
from boom_ray.model import directory
from boom_ray.recipe import Recipe, identity
from boom_ray.runs import updates
from tests import fuzzing

SLOWER = 20


def fuzz(num_examples: int, *strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test with examples: always the same few, and with `--slow` many others."""

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        def of_one(drawn: tuple[Any, ...]) -> None:
            check(*drawn)

        @pytest.mark.parametrize("times", [1, pytest.param(SLOWER, marks=pytest.mark.slow)])
        def test(times: int) -> None:
            run = settings(
                max_examples=num_examples * times,
                derandomize=True,
                database=None,
                phases=[Phase.generate],  # without shrinking: a failure is one example
                deadline=None,
                suppress_health_check=list(HealthCheck),
            )(given(st.tuples(*strategies))(of_one))
            with tempfile.TemporaryDirectory() as home:
                before = os.getcwd()
                os.chdir(home)
                try:
                    run()
                finally:
                    os.chdir(before)

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


RECIPE = {
    "name": "quickstart",
    "storage": "runs",
    "base_model": {"path": "base", "pooling": "mean", "max_length": 64},
    "data": {
        "tasks": [
            {"name": "a", "path": "a.jsonl", "type": "retrieval", "instruction": "find it", "limit": 10},
            {"name": "b", "path": "b", "type": "sts", "expected_rows": 5},
        ],
        "instruction": "find",
        "query_template": "{instruction}: {query}",
        "max_bad_fraction": 0.5,
    },
    "bags": {"ratios": [50, 100], "partition": False, "seed": 1},
    "train": {
        "epochs": 1,
        "batch_size": 8,
        "temperature": 0.02,
        "matryoshka": [16, 32],
        "lora": {"rank": 4, "targets": ["all-linear"]},
        "learning_rate": 1e-4,
        "precision": "bf16",
        "execution": {"num_workers": 1, "resources_per_worker": {"CPU": 1}, "zero_stage": 1},
    },
    "merge": {"method": "ties", "weights": [1, 2], "density": [0.5, 0.5], "execution": {"num_workers": 1}},
    "evaluate": {"data": "eval", "max_length": 32},
}


def use_recipe(content: bytes) -> None:
    """Read a recipe, and derive from it what a run does before it touches any other file."""
    with open("recipe.yaml", "wb") as file:
        file.write(content)
    with fuzzing.only_errors_for_users():
        recipe = Recipe.load("recipe.yaml")
        artifacts.fingerprint([identity(section) for section in (recipe.bags, recipe.train, recipe.merge)])
        directory.prompts_of(recipe.data)
        recipe.merge.densities(len(recipe.bags.ratios))
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
        json.dumps(recipe.model_dump(mode="json")).encode()
    with fuzzing.only_errors_for_users():
        os.replace("recipe.yaml", "tasks.yaml")
        updates.read_tasks(os.path.abspath("tasks.yaml"))


@fuzz(200, fuzzing.damaged(RECIPE, fuzzing.values))
def test_recipes_with_damaged_values(recipe):
    use_recipe(
        yaml.safe_dump(recipe, allow_unicode=random.Random(str(recipe)).random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    )


@fuzz(100, fuzzing.damaged_bytes(yaml.safe_dump(RECIPE).encode()))
def test_recipes_with_damaged_bytes(content):
    use_recipe(content)


ROW = {
    "query": "a question",
    "pos": ["an answer", "another"],
    "neg": ["no answer"],
    "prompt": "find: ",
    "pos_scores": [0.5, 1.0],
    "neg_scores": [0],
    "negative_1": "x",
    "id": "7",
    "text": "some text",
    "label": "a",
    "stars": 3,
}
OTHER_ROW = {"id": 8, "text": "another text", "label": 1, "stars": 2.5, "anchor": "q", "positive": "p"}


@fuzz(200, fuzzing.damaged(ROW, fuzzing.json_values, most=6))
def test_damaged_rows_are_normalized_or_bad(row):
    try:
        normal, _ = rows.normalize(row)
    except rows.BadRow as reason:
        assert str(reason)
    else:
        pa.RecordBatch.from_pylist([normal], rows.SCHEMA)


BEIR_FILES = {
    "corpus.jsonl": b'{"_id": "d1", "title": "t", "text": "a document"}\n{"_id": 2, "text": "another"}\n',
    "queries.jsonl": b'{"_id": "q1", "text": "a query"}\n{"_id": "2", "text": "another"}\n',
    "qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq1\td1\t1\n2\t2\t3\n",
}


@fuzz(200, *(fuzzing.damaged_bytes(content, most=2) for content in BEIR_FILES.values()), st.integers(0, 30))
def test_beir_directories_with_damaged_files(documents, queries, qrels, missing):
    with tempfile.TemporaryDirectory(dir=".") as folder:
        os.mkdir(os.path.join(folder, "qrels"))
        for number, (name, content) in enumerate(zip(BEIR_FILES, (documents, queries, qrels), strict=True)):
            if number != missing:
                with open(os.path.join(folder, name), "wb") as file:
                    file.write(content)
        with fuzzing.only_errors_for_users():
            local_tasks.find(os.path.abspath(folder))
            task = read_beir(os.path.abspath(folder))
            assert set(task["queries"]) == set(task["relevant_docs"])
            for grades in task["relevant_docs"].values():
                assert all(name in task["corpus"] and grade > 0 for name, grade in grades.items())

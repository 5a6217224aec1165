"""Training rows: which columns are understood, and what becomes of each value."""

import json

import pytest

from boom_ray.data.training_row import SCHEMA, BadRow, normalize, understood
from boom_ray.errors import InputError
from boom_ray.recipe import Data, Recipe
from tests.data.test_corpus import prepare, stored_rows

PAIR = {"query": "a", "pos": ["b"]}


def test_repeated_positives_keep_the_scores_of_their_first_occurrence():
    raw = {"query": "a", "pos": ["b", "b", "c"], "pos_scores": [3, 2, 1], "neg": ["d"], "neg_scores": [0.5]}
    row, dropped = normalize(raw)
    assert (row["pos"], row["pos_scores"], dropped) == (["b", "c"], [3, 1], 0)
    assert (row["neg"], row["neg_scores"]) == (["d"], [0.5]) and set(row) == set(SCHEMA.names)


@pytest.mark.parametrize(
    "raw",
    [
        {"query": "a", "pos": "b", "neg": ["c"]},
        {"anchor": "a", "positive": "b", "negative": "c", "negative_1": "", "negative_2": None},
        {"anchor": "a", "positive": "b", "negative": ["c"]},
        {"query": "a", "positives": ["b"], "negatives": "c"},
        {"question": "a", "answer": "b", "negative": "c"},
        {"query": "a", "passage": "b", "neg": ["c"], "label": None, "score": ""},
        {"sentence1": "a", "sentence2": "b", "negative": "c"},
        {"query": "a", "document": "b", "negatives": ["c"], "document_score": "0.7"},
        {"query": "a", "pos": [], "positive": "b", "neg": [], "negative_1": "c"},
        {"query": "a", "pos": ["b"], "neg": ["c"], "label": 3},
        PAIR | {"neg": ["c"], "prompt": "", "pos_scores": [], "neg_scores": None, "answers": ""},
        {"query": "a", "pos": ["b"], "neg": ["c"], "answers": ["b"]},
    ],
    ids=lambda raw: " ".join(raw),
)  # fmt: skip
def test_columns_of_other_tools_are_understood(raw):
    row, _ = normalize(raw)
    assert (row["query"], row["pos"], row["neg"]) == ("a", ["b"], ["c"])
    assert row["prompt"] is row["pos_scores"] is row["neg_scores"] is row["answers"] is None


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"sentence1": "a", "sentence2": "b", "score": 0.9}, "score grades the pair"),
        ({"sentence1": "a", "sentence2": "b", "label": 0}, "label grades the pair"),
        ({"question": "a", "answer": "b", "label": 1}, "rename answer to positive"),
        ({"query": "a", "passage": "b", "score": 1}, "rename passage to positive"),
        ({"text": "a", "label": 1}, "Columns with a value: label, text; understood: query (or anchor,"),
        ({"text": "a", "label": 1}, "A label is not a text"),
        ({"question": "a", "answers": ["b"]}, "pos is missing or empty. Columns with a value: answers,"),
        ({}, "Columns with a value: none"),
        ({"query": ["a"], "pos": ["b"]}, "query is not a text but a list"),
        ({"query": {"text": "a"}, "pos": ["b"]}, "query is not a text but an object"),
        ({"query": "a", "pos": {"text": "b"}}, "pos is not a list of texts but an object"),
        ({"query": "a", "pos": [["b"]]}, "pos is not a list of texts: it holds a list"),
        ({"query": "a", "pos": 1}, "pos is not a list of texts but a number"),
        ({"query": "a", "pos": True}, "pos is not a list of texts but true or false"),
        ({"query": "a", "pos": b"b"}, "pos is not a list of texts but bytes"),
        (PAIR | {"neg": [{"text": "c"}]}, "neg is not a list of texts: it holds an object"),
        (PAIR | {"negative_1": 0}, "negative_1 is not a list of texts but a number"),
        (PAIR | {"neg": {}}, "neg is not a list of texts but an object"),
        (PAIR | {"neg": ["c", ""]}, "neg holds an empty text"),
        (PAIR | {"answers": {"text": ["c"]}}, "answers is not a list of texts"),
        (PAIR | {"prompt": ["p"]}, "prompt is not a text but a list"),
        (PAIR | {"prompt": "\ud83d"}, "prompt holds half of a surrogate pair"),
        (PAIR | {"answers": ["\ud83d"]}, "answers holds half of a surrogate pair"),
        ({"query": "a", "pos": ["b\udc00"]}, "pos holds half of a surrogate pair"),
        (PAIR | {"negative_1": "\udc00"}, "neg holds half of a surrogate pair"),
        (PAIR | {"pos_scores": [float("nan")]}, "pos_scores holds a number that is not finite"),
        (PAIR | {"pos_scores": [-float("inf")]}, "pos_scores holds a number that is not"),
        (PAIR | {"pos_scores": [1e300]}, "pos_scores holds a number that is not finite in 32"),
        (PAIR | {"pos_scores": [10**400]}, "pos_scores holds a number that is not finite"),
        (PAIR | {"neg": ["c"], "neg_scores": [True]}, "it holds true or false"),
        (PAIR | {"pos_scores": ["1"]}, "pos_scores is not a list of numbers"),
        (PAIR | {"pos_scores": {"b": 1}}, "pos_scores is not a list of numbers"),
        ({"query": "a", "pos": ["b", "b"], "pos_scores": [1]}, "pos_scores has 1 numbers for 2 texts"),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_row_that_is_not_understood_is_refused_with_the_reason(raw, reason):
    with pytest.raises(BadRow) as caught:
        normalize(raw)
    assert reason in str(caught.value) and str(caught.value).isprintable()


def test_equal_texts_with_another_prompt_are_different_rows(tmp_path):
    row = {"query": "a", "pos": ["b"], "neg": ["c"]}
    prompts = [{}, {"prompt": None}, {"prompt": ""}, {"prompt": "task"}, {"prompt": "P"}, {"prompt": "P"}]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row | prompt) + "\n" for prompt in prompts))
    counts = prepare(tmp_path, path, instruction="task").config.tasks["t"]
    assert (counts.rows, counts.duplicates) == (2, 4)
    assert [stored["prompt"] for stored in stored_rows(tmp_path)] == [None, "P"]


def test_columns_that_training_does_not_use_are_named(tmp_path, caplog):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(PAIR | {"document_rank": 3, "negative_12": "c"}) + "\n")
    with caplog.at_level("INFO", logger="boom_ray"):
        prepare(tmp_path, path)
    assert "document_rank" in caplog.text and "negative_12" not in caplog.text
    assert understood("negative_12") and not understood("negatives_1")


@pytest.mark.parametrize(
    "template",
    ["Use } {query}", "Use { {query}", "{{instruction}} {query}", "{query} and {query}", "{} {query}",
     "{instruction!r} {query}", "{instruction:>9} {query}", "{other} {query}", "{query} ", "{query"],
)  # fmt: skip
def test_a_template_that_cannot_be_filled_is_refused(tmp_path, template):
    with pytest.raises(ValueError, match="it must end in"):
        Data.model_validate({"tasks": [{"name": "t", "path": "t"}], "query_template": template})
    path = tmp_path / "recipe.yaml"
    values = {
        "name": "t",
        "base_model": "base",
        "data": {"tasks": [{"name": "t", "path": "t"}], "query_template": template},
    }
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="query_template"):
        Recipe.load(str(path))

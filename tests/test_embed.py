"""Batch embedding: the vectors are those of the encoder, and what cannot be embedded is refused."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boom_ray import artifact
from boom_ray.embed import embed
from boom_ray.errors import BoomError
from boom_ray.model import directory
from tests import texts

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def mixed() -> list[str]:
    """Texts from none to longer than the model takes, with a line separator that ends no line of jsonl."""
    pieces = [text for pair in texts.functions("email") for text in pair][:95]
    return ["", "a", "x " * 500, "ünïcödé ✓ 漢字", "one\u2028two\nthree", *pieces]


@pytest.fixture(scope="session")
def weightless(published_minilm, tmp_path_factory) -> str:
    """A model directory complete but for its weights: what is refused with it needs no model."""
    path = str(tmp_path_factory.mktemp("weightless") / "minilm")
    shutil.copytree(published_minilm, path, ignore=shutil.ignore_patterns("*.safetensors", "artifact.json"))
    return path


def write_parquet(path, columns: dict) -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def write_jsonl(path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(target: str) -> pa.Table:
    """All rows of an embeddings artifact, in the order of their ids."""
    files = artifact.verify(target).files
    return pa.concat_tables(pq.read_table(os.path.join(target, name)) for name in files).sort_by("id")


def vectors(table: pa.Table) -> np.ndarray:
    return np.stack(table["embedding"].to_numpy())


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.fixture(scope="module", params=["published_minilm", "published_qwen3"])
def model(request) -> str:
    """A published model of each family."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def embedded(model, mixed, tmp_path_factory) -> str:
    """The target of a run from jsonl with integer ids."""
    directory = tmp_path_factory.mktemp("embedded")
    rows = [{"id": i, "text": text, "more": None} for i, text in enumerate(mixed)]
    embed(model, write_jsonl(directory / "in.jsonl", rows), str(directory / "out"))
    return str(directory / "out")


def test_the_vectors_are_those_of_the_encoder(model, embedded, mixed):
    table, encoder = read(embedded), directory.load_encoder(model)
    assert table["id"].to_pylist() == list(range(len(mixed)))
    dimensions = encoder.transformer.config.hidden_size
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), dimensions)
    assert cosines(vectors(table), encoder.encode(mixed)).min() >= 0.99999
    assert np.abs(np.linalg.norm(vectors(table), axis=1) - 1).max() < 1e-5


def test_the_record_names_what_the_vectors_were_made_from(model, embedded, mixed):
    record, parent = artifact.read_record(embedded), artifact.read_record(model)
    assert record.kind == "embeddings"
    assert record.parents == [parent.as_parent()]
    assert record.config["model"] == parent.digest
    assert record.config["rows"] == len(mixed)
    assert record.config["dimensions"] == read(embedded).schema.field("embedding").type.list_size
    assert sorted(os.listdir(os.path.dirname(embedded))) == ["in.jsonl", "out"]


def test_parquet_files_are_embedded_with_a_prompt_by_several_workers(published_qwen3, mixed, tmp_path):
    ids = [f"doc-{i:03}" for i in range(len(mixed))]
    for part in range(3):
        rows = slice(part * 40, part * 40 + 40)
        write_parquet(
            tmp_path / "in" / f"{part}.parquet",
            {"more": mixed[rows], "key": ids[rows], "body": pa.array(mixed[rows], pa.large_string())},
        )
    record = embed(published_qwen3, str(tmp_path / "in"), str(tmp_path / "out"), "body", "key", "query", 2)

    table, encoder = read(str(tmp_path / "out")), directory.load_encoder(published_qwen3)
    assert table["id"].to_pylist() == ids
    prompt = encoder.spec.prompts["query"]
    assert cosines(vectors(table), encoder.encode(mixed, prompt)).min() >= 0.99999
    assert cosines(vectors(table), encoder.encode(mixed)).min() < 0.999
    assert (record.config["prompt_name"], record.config["prompt"]) == ("query", prompt)


def refused(model: str, source: str, tmp_path, **options) -> str:
    """The message with which a source is refused; nothing may be left at or beside the target."""
    target = tmp_path / "results" / "out"
    target.parent.mkdir()
    with pytest.raises(BoomError) as refusal:
        embed(model, source, str(target), **options)
    assert os.listdir(target.parent) == []
    return str(refusal.value)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_missing_column_is_named_beside_those_there_are(suffix, weightless, tmp_path):
    if suffix == "parquet":
        source = write_parquet(tmp_path / "in.parquet", {"key": [1], "body": ["a"]})
    else:
        source = write_jsonl(tmp_path / "in.jsonl", [{"key": 1, "body": "a"}])
    message = refused(weightless, source, tmp_path, id_column="key")
    assert "no column 'text'; it has key, body" in message


def test_an_unknown_prompt_is_refused_with_those_there_are(weightless, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": "a"}])
    message = refused(weightless, source, tmp_path, prompt_name="quer")
    assert "no prompt 'quer'; it has: document, query" in message


BAD_ROWS = {
    "null texts": (
        ['{"id": 1, "text": "a"}', '{"id": 7, "text": null}', '{"id": 9}'],
        ["2 texts", "7, 9", "3 rows"],
    ),
    "texts that are none": (
        ['{"id": "x", "text": 5}', '{"id": "y", "text": ["a"]}'],
        ["2 texts", "'x', 'y'"],
    ),
    "half a surrogate pair": (['{"id": 3, "text": "\\ud800"}'], ["1 texts", "id 3"]),
    "null ids": (['{"id": 1, "text": "a"}', '{"id": null, "text": "a"}'], ["1 ids", "int64"]),
    "ids of two kinds": (['{"id": 1, "text": "a"}', '{"id": "2", "text": "a"}'], ["1 ids", "int64"]),
    "ids that are none": (['{"id": 1.5, "text": "a"}'], ["double", "integers or strings"]),
    "no rows": ([], ["no rows"]),
    "a line that is no JSON": (['{"id": 1, "text": "a"}', '{"id": 2, "text"'], ["in.jsonl:2"]),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_refused_with_examples(name, weightless, tmp_path):
    lines, words = BAD_ROWS[name]
    (tmp_path / "in.jsonl").write_text("".join(line + "\n" for line in lines))
    message = refused(weightless, str(tmp_path / "in.jsonl"), tmp_path)
    assert all(word in message for word in words), message
    assert "Traceback" not in message


def test_null_texts_in_the_last_of_several_parquet_files_are_found(weightless, tmp_path):
    for part, text in enumerate(["a", "b", None]):
        write_parquet(
            tmp_path / "in" / f"{part}.parquet", {"id": [part], "text": pa.array([text], pa.string())}
        )
    assert "1 texts in 'text' are null or not text: id 2" in refused(
        weightless, str(tmp_path / "in"), tmp_path
    )


def test_a_damaged_parquet_file_is_refused(weightless, tmp_path):
    source = write_parquet(tmp_path / "in" / "0.parquet", {"id": [1], "text": ["a"]})
    shutil.copy(source, tmp_path / "in" / "1.parquet")
    os.truncate(tmp_path / "in" / "1.parquet", os.path.getsize(source) - 20)
    message = refused(weightless, str(tmp_path / "in"), tmp_path)
    assert str(tmp_path / "in") in message
    assert "\n" not in message


@pytest.mark.parametrize("names", [[], ["notes.txt"], ["a.jsonl", "b.parquet"]])
def test_a_source_without_files_of_one_format_is_refused(names, weightless, tmp_path):
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_text("x")
    message = refused(weightless, str(tmp_path / "in"), tmp_path)
    assert str(tmp_path / "in") in message
    assert ".parquet" in message


def test_a_target_that_is_taken_is_left_as_it_is(weightless, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": "a"}])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(BoomError, match=r"out: "):
        embed(weightless, source, str(tmp_path / "out"))
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_failure_of_a_worker_is_one_clear_error_and_leaves_nothing(weightless, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": "a"}])
    message = refused(weightless, source, tmp_path)
    assert f"{weightless}: cannot be loaded as a model" in message
    assert "\n" not in message

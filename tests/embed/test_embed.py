"""Batch embedding: the vectors are those of the encoder, and what cannot be embedded is refused."""

import glob
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from boom_ray.embed.options import Options
from boom_ray.embed.run import embed

from boom_ray import artifacts
from boom_ray.embed import probe
from boom_ray.embed.drift import drift
from boom_ray.embed.pieces import cut
from boom_ray.embed.vectors import restore
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
    files = artifacts.verify(target).files
    parts = [name for name in files if name.endswith(".parquet")]
    return pa.concat_tables(pq.read_table(os.path.join(target, name)) for name in parts).sort_by("id")


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
    source = write_jsonl(directory / "in.jsonl", rows)
    embed(model, source, str(directory / "out"), Options(empty_text="embed"))
    return str(directory / "out")


def test_the_vectors_are_those_of_the_encoder(model, embedded, mixed):
    table, encoder = read(embedded), directory.load_encoder(model)
    assert table["id"].to_pylist() == list(range(len(mixed)))
    dimensions = encoder.transformer.config.hidden_size
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), dimensions)
    assert cosines(vectors(table), encoder.encode(mixed)).min() >= 0.99999
    assert np.abs(np.linalg.norm(vectors(table), axis=1) - 1).max() < 1e-5


def test_the_record_names_what_the_vectors_were_made_from(model, embedded, mixed):
    record, parent = artifacts.read_record(embedded), artifacts.read_record(model)
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
    options = Options("body", "key", "query", empty_text="embed", num_workers=2)
    record = embed(published_qwen3, str(tmp_path / "in"), str(tmp_path / "out"), options)

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
        embed(model, source, str(target), Options(**options))
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
    "ids there twice": (['{"id": 4, "text": "a"}', '{"id": 4, "text": "b"}'], ["1 ids", "more than once: 4"]),
    "empty texts": (['{"id": 8, "text": ""}'], ["1 texts", "empty", "--empty-text embed", "id 8"]),
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


@pytest.mark.parametrize("names", [[], ["notes.md"], ["a.jsonl", "b.parquet"]])
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


def test_a_failure_of_a_worker_is_one_clear_error_and_nothing_is_visible(weightless, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": "a"}])
    with pytest.raises(BoomError, match=f"{weightless}: cannot be loaded as a model") as caught:
        embed(weightless, source, str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not os.path.exists(tmp_path / "out")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    """400 rows of parquet in two row groups and two files, with columns to carry and to filter by."""
    directory = tmp_path_factory.mktemp("corpus")
    pieces = [
        text
        for name in ("email", "json", "asyncio", "http")
        for pair in texts.functions(name)
        for text in pair
    ]
    for part in range(2):
        rows = range(part * 200, part * 200 + 200)
        columns = {"id": list(rows), "text": [pieces[i] for i in rows], "stars": [i % 5 for i in rows]}
        columns["lang"] = ["de" if i % 4 == 0 else "en" for i in rows]
        os.makedirs(directory / "in", exist_ok=True)
        pq.write_table(pa.table(columns), directory / "in" / f"{part}.parquet", row_group_size=120)
    return str(directory / "in")


@pytest.fixture(scope="module")
def whole(corpus, published_qwen3, tmp_path_factory) -> str:
    """All of the corpus embedded."""
    target = str(tmp_path_factory.mktemp("whole") / "out")
    embed(published_qwen3, corpus, target)
    return target


def test_columns_are_carried_along_rows_are_filtered_and_limited(corpus, published_qwen3, tmp_path, whole):
    options = Options(
        columns=("lang", "stars"), filter="lang == 'en' and (stars > 2 or stars in [0])", limit=70
    )
    record = embed(published_qwen3, corpus, str(tmp_path / "out"), options)
    table = read(str(tmp_path / "out"))
    expected = [i for i in range(400) if i % 4 and (i % 5 > 2 or i % 5 == 0)][:70]
    assert table["id"].to_pylist() == expected and record.config["rows"] == 70
    assert table["stars"].to_pylist() == [i % 5 for i in expected] and set(table["lang"].to_pylist()) == {
        "en"
    }
    everything = vectors(read(whole))
    assert cosines(vectors(table), everything[expected]).min() >= 0.99999


@pytest.mark.parametrize("condition", ["lang = 'en'", "open('x')", "lang == other", "lang + 1"])
def test_what_is_no_condition_is_refused(condition, corpus, weightless, tmp_path):
    assert "not a condition" in refused(weightless, corpus, tmp_path, filter=condition)


def test_csv_and_text_files_are_read(published_qwen3, tmp_path):
    (tmp_path / "a.csv").write_text('id,text,n\n1,"one, and\ntwo",3\n2,three,4\n')
    (tmp_path / "b.txt").write_text("first line\n\nthird line\n")
    embed(published_qwen3, str(tmp_path / "a.csv"), str(tmp_path / "of-csv"), Options(columns=("n",)))
    embed(published_qwen3, str(tmp_path / "b.txt"), str(tmp_path / "of-txt"))
    encoder = directory.load_encoder(published_qwen3)
    table = read(str(tmp_path / "of-csv"))
    assert table["id"].to_pylist() == [1, 2] and table["n"].to_pylist() == [3, 4]
    assert cosines(vectors(table), encoder.encode(["one, and\ntwo", "three"])).min() >= 0.99999
    assert read(str(tmp_path / "of-txt"))["id"].to_pylist() == ["b.txt:1", "b.txt:3"]


@pytest.mark.slow
def test_shorter_and_smaller_vectors(corpus, published_qwen3, whole, tmp_path):
    full = vectors(read(whole))
    cut = full[:, :16] / np.linalg.norm(full[:, :16], axis=1, keepdims=True)
    made = {}
    for dtype in ("float16", "int8", "binary"):
        record = embed(published_qwen3, corpus, str(tmp_path / dtype), Options(dimensions=16, dtype=dtype))
        made[dtype] = vectors(read(str(tmp_path / dtype)))
        assert record.config["dimensions"] == 16 and record.config["dtype"] == dtype
        if dtype == "int8":
            low, high = (np.array(record.config[key], np.float32) for key in ("low", "high"))
            restored = restore(made[dtype], low, high)
    assert (
        made["float16"].dtype == np.float16 and cosines(made["float16"].astype(np.float32), cut).min() > 0.999
    )
    assert made["int8"].dtype == np.int8 and np.abs(restored - cut).max() <= (high - low).max() / 255
    assert np.array_equal(np.unpackbits(made["binary"], axis=1).astype(bool), cut > 0)
    assert "1 to 32" in refused(published_qwen3, corpus, tmp_path, dimensions=64)


@pytest.mark.parametrize("prompt", ["", "Find: "])
def test_long_texts_in_pieces(published_qwen3, tmp_path, prompt):
    words = " ".join(f"number {i}" for i in range(120))
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": words}, {"id": 2, "text": "short"}])
    options = Options(prompt=prompt, chunk=40, overlap=8)
    embed(published_qwen3, source, str(tmp_path / "mean"), options)
    embed(published_qwen3, source, str(tmp_path / "each"), replace(options, chunk_output="each"))
    each, mean = read(str(tmp_path / "each")), read(str(tmp_path / "mean"))
    encoder = directory.load_encoder(published_qwen3)
    count = each["id"].to_pylist().count(1)
    assert each["chunk"].to_pylist() == [*range(count), 0] and count > 5
    assert cosines(vectors(each)[-1:], encoder.encode([prompt + "short"])).min() >= 0.99999
    assert cosines(vectors(mean)[1:], vectors(each)[-1:]).min() >= 0.99999
    pieces = cut(encoder.tokenizer, [words], prompt, 128, 40, 8)
    spoken = [encoder.tokenizer.decode(ids, skip_special_tokens=True) for ids in pieces.token_ids]
    assert all(len(ids) <= 40 for ids in pieces.token_ids) and all(text.startswith(prompt) for text in spoken)
    assert spoken[0].removeprefix(prompt).startswith("number 0") and spoken[-1].endswith("number 119")
    weights = np.array([len(ids) for ids in pieces.token_ids])
    expected = (vectors(each)[:count] * weights[:, None]).sum(0, keepdims=True)
    assert cosines(vectors(mean)[:1], expected).min() >= 0.99999


def test_only_new_and_changed_rows_since_an_output(
    corpus, published_qwen3, published_minilm, whole, tmp_path
):
    table = pa.concat_tables(pq.read_table(f"{corpus}/{part}.parquet") for part in range(2)).to_pylist()
    table[7]["text"] += " changed"
    later = [row for row in table if row["id"] != 9] + [{**table[0], "id": 1000, "text": "quite new"}]
    pq.write_table(pa.Table.from_pylist(later), tmp_path / "later.parquet")
    options = Options(since=(whole,))
    record = embed(published_qwen3, str(tmp_path / "later.parquet"), str(tmp_path / "out"), options)
    assert read(str(tmp_path / "out"))["id"].to_pylist() == [7, 1000]
    assert (record.config["unchanged"], record.config["gone"]) == (398, 1)
    assert json.loads((tmp_path / "out" / "gone.json").read_text()) == [9]
    message = refused(published_minilm, str(tmp_path / "later.parquet"), tmp_path, since=(whole,))
    assert "another model" in message and "all rows must be embedded again" in message


def test_a_killed_run_is_finished_by_the_next_and_nothing_done_twice(
    corpus, published_qwen3, whole, tmp_path
):
    target = str(tmp_path / "out")
    code = "import sys; from boom_ray.cli import main; main(sys.argv[1:])"
    arguments = ["embed", published_qwen3, corpus, target, "--chunk-tokens", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stdout=subprocess.DEVNULL,
    )
    unfinished = []
    while process.poll() is None and not unfinished:
        unfinished = glob.glob(str(tmp_path / ".out.unfinished-*" / "part-*.parquet"))
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert unfinished and not os.path.exists(target)
    before = {os.path.basename(path): os.stat(path).st_mtime_ns for path in unfinished}
    embed(published_qwen3, corpus, target, Options(chunk_tokens=1))
    for name, moment in before.items():
        assert os.stat(os.path.join(target, name)).st_mtime_ns == moment, "a partition that was there is kept"
    table = read(target)
    assert table["id"].to_pylist() == read(whole)["id"].to_pylist()
    assert cosines(vectors(table), vectors(read(whole))).min() >= 0.99999
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.slow
def test_a_killed_actor_costs_its_partition(corpus, published_qwen3, whole, tmp_path):
    target = str(tmp_path / "out")
    errors: list[BaseException] = []

    def run() -> None:
        try:
            embed(published_qwen3, corpus, target, Options(chunk_tokens=1))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    killed = 0
    while thread.is_alive():
        parts = glob.glob(str(tmp_path / ".out.unfinished-*" / "part-*.parquet"))
        below = psutil.Process().children(recursive=True)
        encoders = [p for p in below if "MapWorker" in " ".join(p.cmdline())] if parts and not killed else []
        for process in encoders:
            process.kill()
            killed += 1
        time.sleep(0.02)
    thread.join()
    assert killed and not errors
    table = read(target)
    assert table["id"].to_pylist() == read(whole)["id"].to_pylist()
    assert cosines(vectors(table), vectors(read(whole))).min() >= 0.99999


def test_a_long_run_measures_first_and_remembers(corpus, published_minilm, tmp_path):
    rows = [{"id": i, "text": f"number {i} of many"} for i in range(1100)]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    found = probe.measure(published_minilm, [row["text"] for row in rows], 2)
    assert found.threads in (1, 2) and found.precision in ("float32", "bfloat16")
    record = embed(published_minilm, source, str(tmp_path / "out"), Options(chunk_tokens=512))
    table = read(str(tmp_path / "out"))
    whole = directory.load_encoder(published_minilm).encode([row["text"] for row in rows])
    assert record.config["precision"] in ("float32", "bfloat16")
    assert table["id"].to_pylist() == list(range(1100)) and cosines(vectors(table), whole).min() >= 0.9999
    short = embed(published_minilm, source, str(tmp_path / "bf16"), Options(limit=64, precision="bfloat16"))
    assert short.config["precision"] == "bfloat16"
    assert 0.998 < cosines(vectors(read(str(tmp_path / "bf16"))), whole[:64]).min() < 1


def test_drift_tells_whether_an_index_can_stay(corpus, published_qwen3, published_minilm):
    same = drift(published_qwen3, published_qwen3, corpus, "text", "id", 100)
    assert (
        same.rows == 100 and same.cosine == pytest.approx(1, abs=1e-5) and same.overlap == same.crossed == 1
    )
    assert same.lines()[-1] == "the index can stay"
    other = drift(published_qwen3, published_minilm, corpus, "text", "id", 100)
    assert other.cosine is None and 0 < other.overlap < 0.9
    assert "must be built again" in other.lines()[-1]

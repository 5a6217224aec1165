"""Batch embedding: vectors equal the encoder's, bad input is refused, killed runs resume."""

import gc
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
import torch

from boom_ray import artifacts
from boom_ray.embed import probe
from boom_ray.embed.drift import drift
from boom_ray.embed.embed_options import EmbedOptions
from boom_ray.embed.embedding_run import embed
from boom_ray.embed.partition import PartitionMetadata
from boom_ray.embed.pieces import cut
from boom_ray.embed.probe import ComputeSettings
from boom_ray.embed.vectors import restore
from boom_ray.errors import BoomError, ConflictError, InputError, NotFoundError
from boom_ray.model import directory
from boom_ray.model.packed_weights import cpu_multiplies
from tests import texts

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def mixed() -> list[str]:
    """Texts from empty to longer than the maximum, with a separator that does not end a jsonl line."""
    pieces = [text for pair in texts.functions("email") for text in pair][:95]
    return ["", "a", "x " * 500, "ünïcödé ✓ 漢字", "one\u2028two\nthree", *pieces]


@pytest.fixture(scope="session")
def weightless(published_minilm, tmp_path_factory) -> str:
    """A model directory without weights: an error raised with it was raised before the model was loaded."""
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


def stored_metadata(target: str) -> list[PartitionMetadata]:
    """The metadata of each partition, in the order of the files."""
    footers = [pq.read_metadata(os.path.join(target, name)) for name in artifacts.read_record(target).files]
    return [PartitionMetadata.from_arrow(footer.metadata) for footer in footers]


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
    """The output of a run from jsonl with integer ids."""
    directory = tmp_path_factory.mktemp("embedded")
    rows = [{"id": i, "text": text, "more": None} for i, text in enumerate(mixed)]
    source = write_jsonl(directory / "in.jsonl", rows)
    embed(model, source, str(directory / "out"), EmbedOptions(empty_text="embed"))
    return str(directory / "out")


def test_vectors_equal_those_of_the_encoder(model, embedded, mixed):
    table, encoder = read(embedded), directory.load_encoder(model)
    assert table["id"].to_pylist() == list(range(len(mixed)))
    dimensions = encoder.transformer.config.hidden_size
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), dimensions)
    assert cosines(vectors(table), encoder.encode(mixed)).min() >= 0.99999
    assert np.abs(np.linalg.norm(vectors(table), axis=1) - 1).max() < 1e-5


def test_the_record_names_model_rows_and_dimensions(model, embedded, mixed):
    record, parent = artifacts.read_record(embedded), artifacts.read_record(model)
    assert record.kind == "embeddings"
    assert record.parents == [parent.as_parent()]
    assert record.config.model == parent.digest
    assert record.config.rows == len(mixed)
    assert record.config.dimensions == read(embedded).schema.field("embedding").type.list_size
    assert sorted(os.listdir(os.path.dirname(embedded))) == ["in.jsonl", "out"]


def test_several_workers_embed_parquet_files_with_a_prompt(published_qwen3, mixed, tmp_path):
    ids = [f"doc-{i:03}" for i in range(len(mixed))]
    for part in range(3):
        rows = slice(part * 40, part * 40 + 40)
        write_parquet(
            tmp_path / "in" / f"{part}.parquet",
            {"more": mixed[rows], "key": ids[rows], "body": pa.array(mixed[rows], pa.large_string())},
        )
    options = EmbedOptions("body", "key", "query", empty_text="embed", num_workers=2)
    record = embed(published_qwen3, str(tmp_path / "in"), str(tmp_path / "out"), options)

    table, encoder = read(str(tmp_path / "out")), directory.load_encoder(published_qwen3)
    assert table["id"].to_pylist() == ids
    prompt = encoder.spec.prompts["query"]
    assert cosines(vectors(table), encoder.encode(mixed, prompt)).min() >= 0.99999
    assert cosines(vectors(table), encoder.encode(mixed)).min() < 0.999
    assert (record.config.prompt_name, record.config.prompt) == ("query", prompt)


def refused(model: str, source: str, tmp_path, error: type[BoomError] = InputError, **options) -> str:
    """The message of the error that a source causes; nothing may be left at or next to the target."""
    target = tmp_path / "results" / "out"
    target.parent.mkdir()
    with pytest.raises(error) as refusal:
        embed(model, source, str(target), EmbedOptions(**options))
    assert os.listdir(target.parent) == []
    return str(refusal.value)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_missing_column_is_named_with_the_existing_ones(suffix, weightless, tmp_path):
    if suffix == "parquet":
        source = write_parquet(tmp_path / "in.parquet", {"key": [1], "body": ["a"]})
    else:
        source = write_jsonl(tmp_path / "in.jsonl", [{"key": 1, "body": "a"}])
    message = refused(weightless, source, tmp_path, NotFoundError, id_column="key")
    assert "'text'" in message and "key, body" in message


def test_an_unknown_prompt_is_named_with_the_existing_ones(weightless, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": "a"}])
    message = refused(weightless, source, tmp_path, NotFoundError, prompt_name="quer")
    assert "'quer'" in message and "document, query" in message


BAD_ROWS = {
    "null texts": (
        ['{"id": 1, "text": "a"}', '{"id": 7, "text": null}', '{"id": 9}'],
        ["2 texts", "7, 9", "3 rows"],
    ),
    "texts of other types": (
        ['{"id": "x", "text": 5}', '{"id": "y", "text": ["a"]}'],
        ["2 texts", "'x', 'y'"],
    ),
    "half a surrogate pair": (['{"id": 3, "text": "\\ud800"}'], ["1 texts", "id 3"]),
    "null ids": (['{"id": 1, "text": "a"}', '{"id": null, "text": "a"}'], ["1 ids", "int64"]),
    "ids of two kinds": (['{"id": 1, "text": "a"}', '{"id": "2", "text": "a"}'], ["1 ids", "int64"]),
    "ids of another type": (['{"id": 1.5, "text": "a"}'], ["double", "integers or strings"]),
    "repeated ids": (['{"id": 4, "text": "a"}', '{"id": 4, "text": "b"}'], ["1 ids", ": 4."]),
    "empty texts": (['{"id": 8, "text": ""}'], ["1 texts", "empty_text", "id 8"]),
    "no rows": ([], ["no rows"]),
    "a line that is not JSON": (['{"id": 1, "text": "a"}', '{"id": 2, "text"'], ["in.jsonl:2"]),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_refused_with_examples(name, weightless, tmp_path):
    lines, parts = BAD_ROWS[name]
    (tmp_path / "in.jsonl").write_text("".join(line + "\n" for line in lines))
    message = refused(weightless, str(tmp_path / "in.jsonl"), tmp_path)
    assert all(part in message for part in parts), message
    assert "Traceback" not in message


def test_null_texts_in_the_last_of_several_parquet_files_are_found(weightless, tmp_path):
    for part, text in enumerate(["a", "b", None]):
        write_parquet(
            tmp_path / "in" / f"{part}.parquet", {"id": [part], "text": pa.array([text], pa.string())}
        )
    message = refused(weightless, str(tmp_path / "in"), tmp_path)
    assert "1 texts" in message and "'text'" in message and "id 2" in message


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
    message = refused(weightless, str(tmp_path / "in"), tmp_path, BoomError)
    assert str(tmp_path / "in") in message
    assert ".parquet" in message


def test_an_existing_target_is_not_changed(weightless, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": "a"}])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(BoomError, match=r"out: "):
        embed(weightless, source, str(tmp_path / "out"))
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_failed_worker_is_one_clear_error_and_leaves_no_output(weightless, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": "a"}])
    with pytest.raises(BoomError, match=weightless) as caught:
        embed(weightless, source, str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not os.path.exists(tmp_path / "out")


def await_free_cpus(number: int) -> None:
    """Wait until so many CPUs are free; Ray counts them again some seconds after their use."""
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0.0) < number:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.2)


def test_the_encoders_of_a_failed_run_end_with_it(weightless, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": "a"}])
    gc.disable()
    try:
        with pytest.raises(BoomError) as caught:
            embed(weightless, source, str(tmp_path / "out"))
        await_free_cpus(2)
    finally:
        gc.enable()
    assert weightless in str(caught.value)  # the exception is kept until here


@ray.remote(num_cpus=1)
class Occupant:
    """Holds a CPU."""

    def ready(self) -> None: ...


def test_a_run_ends_where_other_work_holds_a_cpu(published_qwen3, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": i, "text": f"text {i}"} for i in range(300)])
    occupant = Occupant.remote()
    ray.get(occupant.ready.remote())
    try:
        assert embed(published_qwen3, source, str(tmp_path / "out")).config.rows == 300
    finally:
        ray.kill(occupant)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    """400 rows of parquet in two files of two row groups, with columns to copy and to filter by."""
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


def test_columns_are_copied_and_rows_are_filtered_and_limited(corpus, published_qwen3, tmp_path, whole):
    options = EmbedOptions(
        columns=("lang", "stars"), filter="lang == 'en' and (stars > 2 or stars in [0])", limit=70
    )
    record = embed(published_qwen3, corpus, str(tmp_path / "out"), options)
    table = read(str(tmp_path / "out"))
    expected = [i for i in range(400) if i % 4 and (i % 5 > 2 or i % 5 == 0)][:70]
    assert table["id"].to_pylist() == expected and record.config.rows == 70
    assert table["stars"].to_pylist() == [i % 5 for i in expected] and set(table["lang"].to_pylist()) == {
        "en"
    }
    everything = vectors(read(whole))
    assert cosines(vectors(table), everything[expected]).min() >= 0.99999


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> None:
    """A cache of datasets of its own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("library", ["pandas", "pyarrow", "polars", "datasets", "ray"])
def test_libraries_open_the_output_directory(library, whole, hub_cache):
    import datasets
    import pandas
    import polars

    opened = {
        "pandas": lambda: pandas.read_parquet(whole),
        "pyarrow": lambda: pq.read_table(whole).to_pandas(),
        "polars": lambda: pandas.DataFrame(polars.read_parquet(whole).to_dict(as_series=False)),
        "datasets": lambda: datasets.load_dataset("parquet", data_dir=whole, split="train").to_pandas(),
        "ray": lambda: ray.data.read_parquet(whole).to_pandas(),
    }[library]()
    expected = read(whole)
    found = opened.sort_values("id")
    assert list(opened.columns) == expected.column_names
    assert found["id"].tolist() == expected["id"].to_pylist()
    assert found["text_xxh3"].tolist() == expected["text_xxh3"].to_pylist()
    assert np.array_equal(np.stack(found["embedding"].to_list()), vectors(expected))


def test_an_output_to_which_nothing_was_added_has_its_columns(corpus, published_qwen3, whole, tmp_path):
    import polars

    target = str(tmp_path / "out")
    record = embed(published_qwen3, corpus, target, EmbedOptions(since=(whole,)))
    assert (record.config.rows, record.config.unchanged) == (0, 400)
    assert artifacts.read_record(target) == artifacts.verify(target) == record
    assert pq.read_table(target).schema.types == pq.read_table(whole).schema.types
    assert polars.read_parquet(target).columns == pq.read_table(whole).column_names


def test_an_invalid_filter_is_refused(corpus, weightless, tmp_path):
    assert "lang + 1" in refused(weightless, corpus, tmp_path, filter="lang + 1")


def test_csv_and_text_files_are_read(published_qwen3, tmp_path):
    (tmp_path / "a.csv").write_text('id,text,n,tokens\n1,"one, and\ntwo",3,x\n2,three,4,y\n')
    (tmp_path / "b.txt").write_text("first line\n\nthird line\n")
    options = EmbedOptions(columns=("n", "text", "tokens"))
    embed(published_qwen3, str(tmp_path / "a.csv"), str(tmp_path / "of-csv"), options)
    record = embed(published_qwen3, str(tmp_path / "b.txt"), str(tmp_path / "of-txt"))
    encoder = directory.load_encoder(published_qwen3)
    table = read(str(tmp_path / "of-csv"))
    assert table["id"].to_pylist() == ["1", "2"] and table["n"].to_pylist() == [3, 4]
    assert table["text"].to_pylist() == ["one, and\ntwo", "three"] and table["tokens"].to_pylist() == [
        "x",
        "y",
    ]
    assert cosines(vectors(table), encoder.encode(["one, and\ntwo", "three"])).min() >= 0.99999
    assert read(str(tmp_path / "of-txt"))["id"].to_pylist() == ["b.txt:1", "b.txt:3"]
    assert record.config.id_column is None


def test_a_csv_that_gains_an_id_of_letters_is_extended(published_qwen3, tmp_path):
    for name, more in (("before", ""), ("after", "A3,c\n")):
        (tmp_path / f"{name}.csv").write_text("id,text\n007,a\n2,b\n" + more)
    embed(published_qwen3, str(tmp_path / "before.csv"), str(tmp_path / "before"))
    options = EmbedOptions(since=(str(tmp_path / "before"),))
    record = embed(published_qwen3, str(tmp_path / "after.csv"), str(tmp_path / "after"), options)
    assert (record.config.rows, record.config.unchanged, record.config.deleted) == (1, 2, [])
    assert read(str(tmp_path / "after"))["id"].to_pylist() == ["A3"]
    source = write_jsonl(tmp_path / "numbers.jsonl", [{"id": 7, "text": "a"}])
    with pytest.raises(ConflictError, match="ids are string"):
        embed(published_qwen3, source, str(tmp_path / "other"), options)


@pytest.mark.slow
def test_fewer_dimensions_and_smaller_types(corpus, published_qwen3, whole, tmp_path):
    full = vectors(read(whole))
    cut = full[:, :16] / np.linalg.norm(full[:, :16], axis=1, keepdims=True)
    made = {}
    for dtype in ("float16", "int8", "ubinary"):
        record = embed(
            published_qwen3, corpus, str(tmp_path / dtype), EmbedOptions(dimensions=16, dtype=dtype)
        )
        made[dtype] = vectors(read(str(tmp_path / dtype)))
        assert record.config.dimensions == 16 and record.config.dtype == dtype
        if dtype == "int8":
            low, high = (np.array(getattr(record.config, key), np.float32) for key in ("low", "high"))
            restored = restore(made[dtype], low, high)
    assert (
        made["float16"].dtype == np.float16 and cosines(made["float16"].astype(np.float32), cut).min() > 0.999
    )
    assert made["int8"].dtype == np.int8 and np.abs(restored - cut).max() <= (high - low).max() / 255
    assert np.array_equal(np.unpackbits(made["ubinary"], axis=1).astype(bool), cut > 0)
    assert "1 to 32" in refused(published_qwen3, corpus, tmp_path, dimensions=64)


@pytest.mark.parametrize("prompt", ["", "Find: "])
def test_chunks_begin_with_the_prompt_and_end_with_the_text(published_qwen3, prompt):
    words = " ".join(f"number {i}" for i in range(120))
    tokenizer = directory.load_encoder(published_qwen3).tokenizer
    pieces = cut(tokenizer, [words], prompt, 128, 40, 8)
    decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in pieces.tokens.lists()]
    assert all(pieces.tokens.lengths <= 40)
    assert all(text.startswith(prompt) for text in decoded)
    assert decoded[0].removeprefix(prompt).startswith("number 0") and decoded[-1].endswith("number 119")


def test_long_texts_in_chunks(published_qwen3, tmp_path):
    prompt, words = "Find: ", " ".join(f"number {i}" for i in range(120))
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": words}, {"id": 2, "text": "short"}])
    options = EmbedOptions(prompt=prompt, chunk=40, overlap=8)
    embed(published_qwen3, source, str(tmp_path / "mean"), options)
    embed(published_qwen3, source, str(tmp_path / "each"), replace(options, chunk_output="each"))
    each, mean = read(str(tmp_path / "each")), read(str(tmp_path / "mean"))
    encoder = directory.load_encoder(published_qwen3)
    count = each["id"].to_pylist().count(1)
    assert each["chunk"].to_pylist() == [*range(count), 0] and count > 5
    assert cosines(vectors(each)[-1:], encoder.encode([prompt + "short"])).min() >= 0.99999
    assert cosines(vectors(mean)[1:], vectors(each)[-1:]).min() >= 0.99999
    pieces = cut(encoder.tokenizer, [words], prompt, 128, 40, 8)
    weights = pieces.tokens.lengths
    expected = (vectors(each)[:count] * weights[:, None]).sum(0, keepdims=True)
    assert cosines(vectors(mean)[:1], expected).min() >= 0.99999


def test_only_rows_that_are_new_or_changed_since_an_output(
    corpus, published_qwen3, published_minilm, whole, tmp_path
):
    table = pa.concat_tables(pq.read_table(f"{corpus}/{part}.parquet") for part in range(2)).to_pylist()
    table[7]["text"] += " changed"
    later = [row for row in table if row["id"] != 9] + [{**table[0], "id": 1000, "text": "new text"}]
    pq.write_table(pa.Table.from_pylist(later), tmp_path / "later.parquet")
    options = EmbedOptions(since=(whole,))
    record = embed(published_qwen3, str(tmp_path / "later.parquet"), str(tmp_path / "out"), options)
    assert read(str(tmp_path / "out"))["id"].to_pylist() == [7, 1000]
    assert (record.config.unchanged, record.config.deleted) == (398, [9])
    later_rows = str(tmp_path / "later.parquet")
    message = refused(published_minilm, later_rows, tmp_path, ConflictError, since=(whole,))
    assert whole in message and "test v0001" in message


@pytest.mark.slow
def test_the_next_run_resumes_a_killed_one_and_repeats_nothing(corpus, published_qwen3, whole, tmp_path):
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
    embed(published_qwen3, corpus, target, EmbedOptions(chunk_tokens=1))
    for name, moment in before.items():
        assert os.stat(os.path.join(target, name)).st_mtime_ns == moment, "a stored partition is kept"
    table = read(target)
    assert table["id"].to_pylist() == read(whole)["id"].to_pylist()
    assert cosines(vectors(table), vectors(read(whole))).min() >= 0.99999
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.slow
def test_a_killed_actor_costs_only_its_partition(corpus, published_qwen3, whole, tmp_path):
    target = str(tmp_path / "out")
    errors: list[BaseException] = []

    def run() -> None:
        try:
            embed(published_qwen3, corpus, target, EmbedOptions(chunk_tokens=1))
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


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> tuple[str, list[str]]:
    """A source large enough for a probe, and its texts."""
    rows = [{"id": i, "text": f"number {i} of many"} for i in range(1100)]
    return write_jsonl(tmp_path_factory.mktemp("many") / "in.jsonl", rows), [row["text"] for row in rows]


@pytest.fixture(scope="module")
def probed(many, published_minilm, tmp_path_factory) -> str:
    """The output of a run that probed the CPUs."""
    target = str(tmp_path_factory.mktemp("probed") / "out")
    embed(published_minilm, many[0], target, EmbedOptions(chunk_tokens=512))
    return target


def test_a_long_run_stores_what_the_probe_measured(many, probed, published_minilm):
    record, table = artifacts.read_record(probed), read(probed)
    measured = stored_metadata(probed)[0].compute
    assert all(metadata.compute == measured for metadata in stored_metadata(probed))
    assert measured.threads in (1, 2, 4) and record.config.precision == measured.precision
    expected = directory.load_encoder(published_minilm).encode(many[1])
    assert table["id"].to_pylist() == list(range(1100))
    assert cosines(vectors(table), expected).min() >= 0.9999


def test_a_resumed_run_computes_as_the_stored_measurement_says(many, probed, published_minilm, tmp_path):
    measured, record = stored_metadata(probed)[0].compute, artifacts.read_record(probed)
    other = "float32" if measured.precision == "bfloat16" else "bfloat16"
    unfinished = tmp_path / f".out.unfinished-{record.fingerprint}"
    unfinished.mkdir()
    part = next(name for name in record.files)
    table, metadata = pq.read_table(f"{probed}/{part}"), stored_metadata(probed)[0]
    metadata = replace(metadata, compute=ComputeSettings(other, 2))
    pq.write_table(table.replace_schema_metadata(metadata.to_arrow()), unfinished / part)
    resumed = embed(published_minilm, many[0], str(tmp_path / "out"), EmbedOptions(chunk_tokens=512))
    assert resumed.fingerprint == record.fingerprint
    assert resumed.config.precision == other
    assert {one.compute for one in stored_metadata(str(tmp_path / "out"))} == {ComputeSettings(other, 2)}


def test_the_probe_uses_bfloat16_only_if_it_is_faster_and_agrees(many, published_minilm, monkeypatch):
    monkeypatch.setattr(probe, "MIN_SPEEDUP", 0)
    monkeypatch.setattr(probe, "MIN_COSINE", 0)
    fastest = "bfloat16" if cpu_multiplies(torch.bfloat16) else "float32"
    assert probe.measure(published_minilm, many[1], 2) == ComputeSettings(fastest, 1)
    monkeypatch.setattr(probe, "MIN_COSINE", 1.1)
    assert probe.measure(published_minilm, many[1], 2) == ComputeSettings("float32", 1)
    monkeypatch.setattr(probe, "MIN_SPEEDUP", float("inf"))
    assert probe.measure(published_minilm, many[1], 2) == ComputeSettings("float32", 2)


def test_the_precision_can_be_chosen(many, published_minilm, tmp_path):
    options = EmbedOptions(limit=64, precision="bfloat16")
    record = embed(published_minilm, many[0], str(tmp_path / "out"), options)
    assert record.config.precision == "bfloat16"
    expected = directory.load_encoder(published_minilm).encode(many[1][:64])
    assert 0.998 < cosines(vectors(read(str(tmp_path / "out"))), expected).min() < 1


def test_drift_decides_whether_an_index_can_stay(corpus, published_qwen3, published_minilm):
    same = drift(published_qwen3, published_qwen3, corpus, "text", "id", 100)
    assert (
        same.rows == 100 and same.cosine == pytest.approx(1, abs=1e-5) and same.overlap == same.crossed == 1
    )
    assert same.index_can_stay
    other = drift(published_qwen3, published_minilm, corpus, "text", "id", 100)
    assert other.cosine is None and 0 < other.overlap < 0.9
    assert not other.index_can_stay

"""The corpus: every bad row is set aside with its place and the reason, and nothing changes unnoticed."""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boom_ray import artifacts
from boom_ray.data import corpus, rows
from boom_ray.errors import BoomError, InputError
from boom_ray.recipe import Data

GOOD = {"query": "q", "pos": ["p"], "neg": ["n"]}


def prepare(tmp_path, path, **fields):
    data = Data.model_validate({"tasks": [{"name": "t", "path": str(path)}], **fields})
    return corpus.prepare(data, str(tmp_path / "out"), "test")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{not json", "invalid JSON"),
        (b'{"query": "\xff", "pos": ["p"]}', "invalid UTF-8"),
        (b"[1]", "not a JSON object"),
        (b'{"pos": ["p"]}', "query is missing"),
        (b'{"query": null, "pos": ["p"]}', "query is missing"),
        (b'{"query": "  ", "pos": ["p"]}', "query holds an empty text"),
        (b'{"query": 3, "pos": ["p"]}', "query is not a text but a number"),
        (b'{"query": "q", "pos": []}', "pos is missing or empty"),
        (b'{"query": "q", "pos": [""]}', "pos holds an empty text"),
        (b'{"query": "q", "pos": ["p"], "neg": [null]}', "neg is not a list of texts"),
        (b'{"query": "q", "pos": ["p"], "neg": 4}', "neg is not a list of texts"),
        (b'{"query": "\\ud800", "pos": ["p"]}', "half of a surrogate pair"),
        (b'{"query": "q", "pos": ["p"], "pos_scores": [1, 2]}', "pos_scores has 2 numbers for 1 texts"),
        (b'{"query": "q", "pos": ["p"], "prompt": 1}', "prompt is not a text"),
    ],
)
def test_a_bad_row_is_quarantined_with_location_and_reason(tmp_path, line, reason):
    path = tmp_path / "t.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    record = prepare(tmp_path, path, max_bad_fraction=0.5)
    assert (record.config.tasks["t"].rows, record.config.tasks["t"].quarantined) == (1, 1)
    entry = json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())
    assert entry["place"] == f"{path}:2" and reason in entry["reason"]
    artifacts.verify(str(tmp_path / "out"))


def test_too_many_bad_rows_fail_the_run_and_leave_no_files(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(GOOD) + "\n{\n")
    with pytest.raises(BoomError) as caught:
        prepare(tmp_path, path, max_bad_fraction=0.4)
    assert "1 of 2 rows are bad, allowed 40.0%" in str(caught.value) and f"{path}:2" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_duplicate_negatives_and_positives_among_them_are_dropped_and_duplicate_rows_counted(tmp_path):
    path = tmp_path / "t.jsonl"
    row = {"query": "q", "pos": ["p"], "neg": ["n", "p", "n"], "neg_scores": [0.1, 0.9, 0.2]}
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")
    counts = prepare(tmp_path, path).config.tasks["t"]
    assert (counts.rows, counts.duplicates, counts.dropped_negatives) == (1, 1, 2)
    stored = corpus.load_task(str(tmp_path / "out"), "t")[0]
    assert stored["neg"] == ["n"] and stored["neg_scores"] == pytest.approx([0.1])


def test_parquet_and_column_names_of_other_tools_are_read(tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"anchor": ["a"], "positive": ["b"], "negative_1": ["c"], "negative_2": ["d"]}),
                   tmp_path / "in" / "st.parquet")  # fmt: skip
    (tmp_path / "in" / "cornstack.jsonl").write_text('{"query": "q", "document": "d", "negatives": ["x"]}\n')
    prepare(tmp_path, tmp_path / "in")
    stored = corpus.load_task(str(tmp_path / "out"), "t")
    assert {(r["query"], *r["pos"], *r["neg"]) for r in stored} == {("a", "b", "c", "d"), ("q", "d", "x")}


def test_a_changed_corpus_is_refused_and_an_unchanged_one_is_reused(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    first = prepare(tmp_path, path)
    assert prepare(tmp_path, path) == first
    path.write_text(json.dumps(GOOD | {"query": "other"}) + "\n")
    with pytest.raises(BoomError, match="t: content changed"):
        prepare(tmp_path, path)


def test_a_stored_corpus_does_not_need_its_source_files(tmp_path, caplog):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    first = prepare(tmp_path, path)
    path.unlink()
    with caplog.at_level("INFO", logger="boom_ray"):
        assert prepare(tmp_path, path) == first
    assert str(path) in caplog.text


def test_missing_or_empty_sources_are_named(tmp_path):
    with pytest.raises(BoomError, match="nowhere"):
        prepare(tmp_path, tmp_path / "nowhere")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(BoomError, match="holds no rows"):
        prepare(tmp_path, tmp_path / "empty.jsonl")


def test_a_truncated_parquet_file_is_named(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(BoomError, match=r"bad\.parquet"):
        list(rows.read_raw(str(tmp_path / "bad.parquet")))


def stored_rows(tmp_path):
    return list(corpus.load_task(str(tmp_path / "out"), "t"))


def test_a_json_array_is_read_like_lines(tmp_path):
    found = [GOOD, 3, GOOD | {"query": "other"}]
    (tmp_path / "t.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(found, indent=2).encode())
    assert prepare(tmp_path, tmp_path / "t.json", max_bad_fraction=0.5).config.tasks["t"].quarantined == 1
    assert [row["query"] for row in stored_rows(tmp_path)] == ["q", "other"]
    entry = json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())
    assert entry["place"] == f"{tmp_path / 't.json'}:2" and entry["reason"] == "not a JSON object"
    assert rows.count_rows(str(tmp_path / "t.json")) == 3


def test_lines_of_which_the_first_is_an_array_stay_lines(tmp_path):
    (tmp_path / "t.jsonl").write_text(f"[1]\n{json.dumps(GOOD)}\n{'[' * 200_000}\n")
    read = list(rows.read_raw(str(tmp_path / "t.jsonl")))
    assert [isinstance(row, dict) for _, row in read] == [False, True, False]
    assert rows.count_rows(str(tmp_path / "t.jsonl")) == 3


def utf8_broken(texts):
    """A string column from bytes that need not be UTF-8, as other writers of parquet make it."""
    binary = pa.array(texts)
    return pa.Array.from_buffers(pa.string(), len(texts), binary.buffers())


def test_a_parquet_row_with_invalid_utf8_is_quarantined_alone(tmp_path):
    queries = utf8_broken([b"good", b"\xff\xfe", "späte".encode("latin-1"), "späte".encode()])
    positives = pa.array([["a"], ["b"], ["c"], ["d"]])
    pq.write_table(pa.table({"query": queries, "pos": positives}), tmp_path / "t.parquet")
    record = prepare(tmp_path, tmp_path / "t.parquet", max_bad_fraction=0.5)
    assert (record.config.tasks["t"].rows, record.config.tasks["t"].quarantined) == (2, 2)
    assert [row["query"] for row in stored_rows(tmp_path)] == ["good", "späte"]
    entries = map(json.loads, (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines())
    assert [(entry["place"].rpartition(":")[2], entry["reason"]) for entry in entries] == [
        ("2", "query: invalid UTF-8"),
        ("3", "query: invalid UTF-8"),
    ]


def test_damaged_bytes_of_a_parquet_file_end_in_a_sentence_or_in_rows(tmp_path):
    path = tmp_path / "t.parquet"
    table = pa.table({"query": ["a", "b"] * 50, "pos": [[f"p{i}"] for i in range(100)]})
    pq.write_table(table, path)
    content, refused = path.read_bytes(), 0
    for position in range(4, len(content), 3):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        for read in (lambda uri: list(rows.read_raw(uri)), rows.count_rows):
            try:
                read(str(path))
            except BoomError as error:
                refused += 1
                assert str(path) in str(error)
    assert refused > 100


def test_parquet_columns_of_one_name_are_refused(tmp_path):
    table = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["query", "pos", "pos"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(BoomError, match="name pos"):
        prepare(tmp_path, tmp_path / "t.parquet")


@pytest.mark.parametrize("value", [1, 1.5, True, {"a": "b"}, [["p"]], [{"a": "b"}], b"p", [b"p"], [None]])
def test_parquet_values_of_other_types_are_quarantined(tmp_path, value):
    pq.write_table(pa.table({"query": ["q"], "pos": [value]}), tmp_path / "t.parquet")
    ((_, raw),) = rows.read_raw(str(tmp_path / "t.parquet"))
    with pytest.raises(BoomError, match="pos is not a list of texts"):
        prepare(tmp_path, tmp_path / "t.parquet")
    assert raw == {"query": "q", "pos": value}


def test_corpora_read_compressed_files_and_skip_hidden_ones(tmp_path):
    row = json.dumps({"query": "q", "pos": ["p"]}) + "\n"
    (tmp_path / "_temporary").mkdir()
    (tmp_path / "_temporary" / "x.jsonl").write_text("broken")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(row.encode() * 3))
    (tmp_path / "B.NDJSON").write_text(row)
    (tmp_path / "notes.md").write_text("about")
    files = rows.data_files(str(tmp_path))
    assert [os.path.basename(file) for file in files] == ["B.NDJSON", "a.jsonl.gz"]
    assert [rows.count_rows(file) for file in files] == [1, 3]
    assert [row["pos"] for file in files for _, row in rows.read_raw(file)] == [["p"]] * 4
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(row.encode() * 3)[:-9])
    with pytest.raises(InputError, match=r"a\.jsonl\.gz"):
        list(rows.read_raw(str(tmp_path / "a.jsonl.gz")))

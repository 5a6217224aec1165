"""Files that users have: what is read from them equals what pandas reads, and the rest is an error."""

import bz2
import gzip
import json
import os
from dataclasses import replace

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from boom_ray.embed import schemas
from boom_ray.embed.earlier_rows import EarlierRows
from boom_ray.embed.embed_options import EmbedOptions
from boom_ray.embed.survey import _refuse_bad_rows, _refuse_missing_columns, _tally_unit
from boom_ray.embed.survey import _tallies_up_to_limit as tallies_up_to_limit
from boom_ray.embed.text_source import COPIED, open_source
from boom_ray.errors import BoomError, InputError, NotFoundError

NONE = EarlierRows(np.empty(0, np.uint64), np.empty(0, np.uint64), [])
INVALID = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
)


def jsonl(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def files(tmp_path):
    """Writes files by path below a directory, and returns it."""

    def write(contents: dict) -> str:
        for name, content in contents.items():
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, dict | pa.Table):
                pq.write_table(pa.table(content) if isinstance(content, dict) else content, path)
            else:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(tmp_path / "in")

    return write


def read(uri: str, **options) -> pa.Table:
    """All rows of a source as both passes of a run read them, without Ray."""
    source = open_source(uri, EmbedOptions(**options))
    units = list(source.find_units())
    tallies = [_tally_unit(source, unit, NONE.keys) for unit in units]
    _refuse_missing_columns(source, tallies)
    _refuse_bad_rows(source, tallies, sum(tally.all for tally in tallies))
    source = replace(source, schema=schemas.common(source, units, tallies))
    table = pa.concat_tables([table for unit in units for table in source.read(unit)])
    return table.rename_columns([name.removeprefix(COPIED) for name in table.column_names])


def values(uri: str, **options) -> dict:
    """The same without the hashes, by name."""
    return read(uri, **options).drop_columns(["text_xxh3"]).to_pydict()


def test_types_grow_with_the_rows_of_json(files):
    rows = [{"id": i, "text": "t", "lang": None, "stars": i} for i in range(100)]
    rows += [{"id": 100, "text": "t", "lang": "en", "stars": 2.5, "late": True}]
    uri = files({"a.jsonl": jsonl(*rows)})
    table = read(uri, columns=("lang", "stars", "late"))
    expected = pandas.read_json(os.path.join(uri, "a.jsonl"), lines=True)
    assert table["stars"].to_pylist() == expected["stars"].tolist() and table["stars"].type == pa.float64()
    assert table["lang"].to_pylist() == [*[None] * 100, "en"]
    assert table["late"].to_pylist() == [*[None] * 100, True]
    selected = values(uri, filter="stars > 2 and stars < 4", columns=("stars",))
    assert selected["id"] == expected[(expected.stars > 2) & (expected.stars < 4)]["id"].tolist() == [3, 100]


def test_types_grow_with_the_files(files):
    uri = files(
        {
            "a.parquet": {
                "id": pa.array([], pa.int64()),
                "text": pa.array([], pa.string()),
                "n": pa.nulls(0),
            },
            "b.parquet": {"id": [1], "text": ["a"], "n": pa.array([1], pa.int8())},
            "c.parquet": {"id": pa.array([2], pa.int32()), "text": ["b"], "n": [2.5], "more": [["x"]]},
        }
    )
    assert values(uri, columns=("n", "more")) == {
        "id": [1, 2], "text": ["a", "b"], "n": [1.0, 2.5], "more": [None, ["x"]]
    }  # fmt: skip


def test_lists_and_objects_are_carried_along(files):
    rows = [
        {"id": 1, "text": "a", "l": [1], "o": {"x": 1}},
        {"id": 2, "text": "b", "l": [2.5], "o": {"y": "z"}},
    ]
    found = values(files({"a.jsonl": jsonl(*rows)}), columns=("l", "o"))
    assert found["l"] == [[1.0], [2.5]]
    assert found["o"] == [{"x": 1, "y": None}, {"x": None, "y": "z"}]


def test_ids_of_csv_are_text_and_cells_are_read_as_pandas_reads_them(files):
    content = 'id,text,zip,n,x,ok\n007,a,02139,1,1.5,true\nA3,"b, c",12345,,2,False\n'
    uri = files({"a.csv": content})
    expected = pandas.read_csv(os.path.join(uri, "a.csv"), dtype={"id": str, "zip": str, "n": "Int64"})
    found = values(uri, columns=("zip", "n", "x", "ok"))
    assert found["id"] == expected["id"].tolist() == ["007", "A3"]
    assert found["zip"] == expected["zip"].tolist() == ["02139", "12345"]
    assert found["n"] == [1, None] and found["x"] == expected["x"].tolist() and found["ok"] == [True, False]
    assert found["text"] == expected["text"].tolist()


@pytest.mark.parametrize(("name", "content"), [
    ("a.csv", "id;text\n1;a,b|c\n"), ("a.tsv", "id\ttext\n1\ta,b|c\n"), ("a.csv", "text|id\na,b|1\n"),
    ("a.CSV", '\ufeffid,text\n1,"a,b|c"\n'), ("a.csv", 'id,text\r\n1,"a,b|c"\r\n'),
])  # fmt: skip
def test_delimiters_are_found_in_the_header(name, content, files):
    found = values(files({name: content}))
    assert found["id"] == ["1"] and found["text"][0].startswith("a,b")


def test_a_cell_may_be_larger_than_a_mebibyte(files):
    text = "long " * 600_000
    assert values(files({"a.csv": f"id,text\n1,{text}\n"}))["text"] == [text]


def test_all_files_of_a_directory_are_read_or_named(files, caplog):
    caplog.set_level("WARNING", logger="boom_ray")  # libraries change the level of the root logger
    line = {name: jsonl({"id": name, "text": name}) for name in "abcdef"}
    uri = files(
        {
            "a.jsonl": line["a"],
            "b.JSONL.gz": gzip.compress(line["b"].encode()),
            "c.ndjson": line["c"],
            "d/d.json.bz2": bz2.compress(line["d"].encode()),
            "e.jsonl.zst": pa.compress(line["e"].encode(), codec="zstd", asbytes=True),
            "f.jsonl.gz": gzip.compress(line["f"].encode())
            + gzip.compress(jsonl({"id": "g", "text": "g"}).encode()),
            "_temporary/0/x.jsonl": "not JSON",
            "_SUCCESS": "",
            ".a.jsonl.crc": "not JSON",
            "d/.hidden/x.jsonl": "not JSON",
            "README.md": "about",
        }
    )
    assert sorted(values(uri)["id"]) == list("abcdefg")
    assert [record.args[-1] for record in caplog.records] == ["README.md"]


def test_upper_case_parquet_is_read_and_unfinished_files_are_not(files):
    row = {"id": [1], "text": ["a"]}
    uri = files({"A.PARQUET": row, "_temporary/0/part.parquet": {"id": [9], "text": ["x"]}})
    assert values(uri)["id"] == [1]


@pytest.mark.parametrize("name", ["b.zip", "b.jsonl.xz", "b.parquet.gz", "b.orc", "b.gz"])
def test_data_files_that_cannot_be_read_are_named(name, files):
    with pytest.raises(InputError, match=name):
        values(files({"a.jsonl": jsonl({"id": 1, "text": "a"}), name: "x"}))


def test_arrays_of_json_are_read(files):
    rows = [{"id": 1, "text": "a"}, {"text": "b", "id": 2}]
    assert values(files({"a.json": json.dumps(rows, indent=1)})) == {"id": [1, 2], "text": ["a", "b"]}


def test_rows_without_ids_are_numbered_by_file(files):
    uri = files({"x/a.txt": "one\n\ntwo\n", "y/a.txt": "three\n"})
    assert values(uri)["id"] == ["x/a.txt:1", "x/a.txt:3", "y/a.txt:1"]


def test_rows_of_parquet_without_ids_are_numbered_through_row_groups(files, tmp_path):
    uri = files({})
    os.makedirs(tmp_path / "in")
    pq.write_table(pa.table({"text": list("abcde")}), tmp_path / "in" / "a.parquet", row_group_size=2)
    assert values(uri)["id"] == [f"a.parquet:{row}" for row in range(1, 6)]
    assert values(uri, filter="text > 'b'")["id"] == [f"a.parquet:{row}" for row in (3, 4, 5)]


@pytest.mark.parametrize("order", [("a.jsonl", "b.jsonl"), ("b.jsonl", "a.jsonl")])
def test_ids_of_some_rows_only_are_refused(order, files):
    with pytest.raises(InputError, match="'id'"):
        values(files({order[0]: jsonl({"text": "a"}), order[1]: jsonl({"id": 1, "text": "a"})}))


def test_directories_become_columns_as_in_pyarrow(files):
    uri = files(
        {
            "lang=en/year=2020/a.parquet": {"id": [1], "text": ["a"]},
            "lang=de%2Fx/year=2021/a.parquet": {"id": [2], "text": ["b"]},
            "lang=__HIVE_DEFAULT_PARTITION__/year=2022/a.parquet": {"id": [3], "text": ["c"]},
        }
    )
    found = values(uri, columns=("lang", "year"), filter="year > 2019")
    expected = pyarrow.dataset.dataset(uri, partitioning="hive").to_table().to_pylist()
    assert {row["id"]: (row["lang"], row["year"]) for row in expected} == dict(
        zip(found["id"], zip(found["lang"], found["year"], strict=True), strict=True)
    )
    assert values(uri, filter="lang == 'en'")["id"] == [1]


@pytest.mark.parametrize("type_of_text", [pa.string(), pa.large_string(), pa.string_view(),
                                          pa.dictionary(pa.int32(), pa.string())])  # fmt: skip
def test_texts_may_be_stored_in_any_way(type_of_text, files):
    column = pa.array(["a", "b", "a"]).cast(type_of_text)
    found = read(files({"a.parquet": {"id": pa.array(["x", "y", "z"]).cast(type_of_text), "text": column,
                                      "copy": column}}), columns=("copy",), filter="copy == 'a'")  # fmt: skip
    assert found["id"].to_pylist() == ["x", "z"] and found["text"].to_pylist() == ["a", "a"]
    assert found["copy"].type in (pa.string(), pa.large_string()) and found["copy"].to_pylist() == ["a", "a"]


def test_columns_of_any_name_are_carried_along(files):
    row = {"id": 1, "text": "a", "tokens": 5, "file": "f", "texts": [1], "a.b": 3, "a": {"b": 4},
           "unit": None, "ids": "t", "piece_of": 7, "chunk": 8, "\0row": 9}  # fmt: skip
    names = tuple(name for name in row if name != "id")
    as_json = values(files({"a.jsonl": jsonl(row)}), columns=names, filter="tokens == 5")
    assert as_json == {name: [value] for name, value in row.items()}


def test_columns_of_any_name_are_carried_along_from_parquet(files):
    row = {
        "id": [1],
        "text": ["a"],
        "tokens": [5],
        "a.b": [3],
        "a": [{"b": 4}],
        "rows.x": [2],
        "column.y": [1],
    }
    assert values(files({"a.parquet": row}), columns=tuple(name for name in row if name != "id")) == row


def test_columns_of_one_name_are_refused_if_they_are_read(files):
    uri = files({"a.parquet": pa.table([[1], ["a"], ["b"], ["c"]], names=["id", "text", "z", "z"])})
    assert values(uri) == {"id": [1], "text": ["a"]}
    with pytest.raises(InputError, match="z"):
        values(uri, columns=("z",))


def parquet_with_a_damaged_page() -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"id": list(range(2000)), "text": [f"text number {i}" for i in range(2000)]})
    pq.write_table(table, sink, use_dictionary=False, compression="snappy")
    content = bytearray(sink.getvalue().to_pybytes())
    content[len(content) // 2 : len(content) // 2 + 200] = b"\xff" * 200
    return bytes(content)


REFUSED = {
    "invalid UTF-8 in texts": ({"a.parquet": {"id": [5], "text": INVALID}}, {}, "id 5"),
    "invalid UTF-8 in ids": ({"a.parquet": {"id": INVALID, "text": ["a"]}}, {}, "1 ids"),
    "invalid UTF-8 in a column": (
        {"a.parquet": {"id": [5], "text": ["a"], "c": INVALID}},
        {"columns": ("c",)},
        "'c'",
    ),
    "a damaged page": ({"a.parquet": parquet_with_a_damaged_page()}, {}, "a.parquet"),
    "an empty parquet file": ({"a.parquet": b""}, {}, "a.parquet"),
    "a file that is not compressed": ({"a.jsonl.gz": b"garbage"}, {}, "a.jsonl.gz"),
    "a compressed file that is cut": (
        {"a.jsonl.gz": gzip.compress(jsonl({"id": 1, "text": "a" * 99}).encode())[:-9]},
        {},
        "a.jsonl.gz",
    ),
    "numbers and text": (
        {"a.jsonl": jsonl({"id": 1, "text": "a", "m": 1}, {"id": 2, "text": "a", "m": "x"})},
        {"columns": ("m",)},
        "a.jsonl:2: 'm'",
    ),
    "numbers and text in two files": (
        {
            "a.parquet": {"id": [1], "text": ["a"], "m": [1]},
            "b.parquet": {"id": [2], "text": ["a"], "m": ["x"]},
        },
        {"columns": ("m",)},
        "b.parquet: column 'm'",
    ),
    "ids of two kinds": (
        {"a.parquet": {"id": [1], "text": ["a"]}, "b.parquet": {"id": ["2"], "text": ["a"]}},
        {},
        "b.parquet: column 'id'",
    ),
    "an integer that becomes another as a float": (
        {
            "a.parquet": {"id": [1], "text": ["a"], "m": [2**53 + 1]},
            "b.parquet": {"id": [2], "text": ["a"], "m": [0.5]},
        },
        {"columns": ("m",)},
        "a.parquet: column 'm'",
    ),
    "empty objects": ({"a.jsonl": jsonl({"id": 1, "text": "a", "m": {}})}, {"columns": ("m",)}, "'m'"),
    "an integer of 70 bits": (
        {"a.jsonl": jsonl({"id": 1, "text": "a", "m": 2**70})},
        {"columns": ("m",)},
        "'m'",
    ),
    "half a surrogate pair": (
        {"a.jsonl": '{"id": 1, "text": "a", "m": "\\ud800"}\n'},
        {"columns": ("m",)},
        "'m'",
    ),
    "too many cells": ({"a.csv": "id,text\n1,a\n2,a,b\n"}, {}, "row 2 has 3 cells"),
    "an open quote": ({"a.csv": 'id,text\n1,"a\n'}, {}, "a.csv"),
    "invalid UTF-8 in CSV": ({"a.csv": b"id,text\n4,\xff\n"}, {}, "id '4'"),
    "invalid UTF-8 in a cell": ({"a.csv": b"id,text,c\n4,a,\xff\n"}, {"columns": ("c",)}, "'c'.*row 1"),
    "an empty id": ({"a.csv": "id,text\n,a\n"}, {}, "1 ids"),
    "invalid UTF-8 in lines": ({"a.txt": b"a\n\xff\n"}, {}, "a.txt:2"),
    "text compared with a number": ({"a.csv": "id,text,c\n4,a,x\n"}, {"filter": "c > 2"}, "'c'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_a_sentence(name, files, tmp_path):
    contents, options, words = REFUSED[name]
    with pytest.raises(InputError, match=words) as refusal:
        values(files(contents), **options)
    assert str(tmp_path) in str(refusal.value)


@pytest.mark.parametrize(("options", "words"), [
    ({"columns": ("nope",)}, "'nope'.*id, text"), ({"filter": "nope == 1"}, "'nope'"),
    ({"id_column": "key"}, "'key'"), ({"text_column": "body"}, "'body'"),
])  # fmt: skip
def test_columns_that_no_row_has_are_named(options, words, files):
    with pytest.raises(NotFoundError, match=words):
        values(files({"a.jsonl": jsonl({"id": 1, "text": "a"})}), **options)


@pytest.mark.parametrize("columns", [("x", "x"), ("embedding",), ("id",), ("text_xxh3",)])
def test_columns_that_clash_with_the_output_are_refused(columns):
    with pytest.raises(InputError, match="columns"):
        EmbedOptions(columns=columns)


@pytest.mark.parametrize("uri", ["hf://datasets/owner/name", "hf://owner/name"])
def test_the_hub_is_refused_with_the_remedy(uri):
    with pytest.raises(BoomError, match="hf download"):
        open_source(uri, EmbedOptions())


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_limit_reads_only_what_it_needs(suffix, files):
    broken = {"b.parquet": b"broken"} if suffix == "parquet" else {"b.jsonl": "broken\n"}
    rows = [{"id": i, "text": f"t{i}", "n": i} for i in range(200)]
    first = {"a.jsonl": jsonl(*rows) + "broken\n"}
    if suffix == "parquet":
        first = {"a.parquet": pa.Table.from_pylist(rows)}
    uri = files(first | broken)
    for limit, condition, read_rows in ((1, None, 1), (70, None, 70), (3, "n > 4", 3)):
        source = open_source(uri, EmbedOptions(limit=limit, filter=condition))
        tallies = tallies_up_to_limit(source, NONE.keys)
        assert [(tally.all, tally.new) for tally in tallies] == [(read_rows, limit)]
    with pytest.raises(InputError, match=r"a\.jsonl|b\.parquet"):
        values(uri)

"""Row filters, compared with Python's own evaluation of the same text."""

import pyarrow as pa
import pytest

from boom_ray.embed.condition import parse
from boom_ray.errors import InputError

ROWS = [{"lang": lang, "stars": stars, "ok": ok} for lang in ("de", "en") for stars in (0, 3, 5)
        for ok in (True, False)]  # fmt: skip


@pytest.mark.parametrize("text", [
    "lang == 'en'", "stars > 3", "stars in [0, 5] and not ok", "ok", "lang != 'en' or (stars <= 3 and ok)",
])  # fmt: skip
def test_a_filter_selects_what_python_selects(text):
    condition = parse(text)
    expected = [number for number, row in enumerate(ROWS) if eval(text, {}, row)]
    columns = {name: pa.array([row[name] for row in ROWS]) for name in ROWS[0]}
    assert condition.rows(columns, frozenset()).to_pylist() == expected
    assert condition.kinds.keys() == {name for name in ("lang", "stars", "ok") if name in text}


@pytest.mark.parametrize(("text", "cells", "expected"), [
    ("x > 2", ["1", "2.5", "", "30"], [1, 3]), ("x == '07'", ["07", "7", ""], [0]),
    ("x in [7]", ["7.0", "8"], [0]), ("x", ["True", "false", ""], [0]), ("x != '1'", ["1", ""], [1]),
])  # fmt: skip
def test_cells_are_read_as_what_they_are_compared_with(text, cells, expected):
    assert parse(text).rows({"x": pa.array(cells)}, frozenset("x")).to_pylist() == expected


@pytest.mark.parametrize("text", ["x > 2", "x == 'a'", "x in ['a']", "x in [1, 2]", "x", "not x"])
def test_null_satisfies_no_comparison(text):
    assert parse(text).rows({"x": pa.nulls(2)}, frozenset()).to_pylist() == []


@pytest.mark.parametrize(("text", "values", "is_cell"), [
    ("x > 2", ["a"], False), ("x > 2", ["1", "a"], True), ("x == 'a'", [1], False), ("x", [1], False),
    ("x == True", ["yes"], True),
])  # fmt: skip
def test_values_of_another_kind_are_refused(text, values, is_cell):
    with pytest.raises(InputError, match="column 'x'"):
        parse(text).rows({"x": pa.array(values)}, frozenset("x" if is_cell else ""))


@pytest.mark.parametrize("text", [
    "lang = 'en'", "open('x')", "lang == other", "lang + 1", "1 < stars < 3", "x == None", "x in []",
    "x in 5", "x in [1, 'a']", "x > 1 and x == 'a'", "(" * 500 + "x", "x\0 == 1",
])  # fmt: skip
def test_other_python_is_refused(text):
    with pytest.raises(InputError, match=r"(?s)filter .*Allowed"):
        parse(text)

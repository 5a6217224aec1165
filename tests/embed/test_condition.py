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
    expression, columns = parse(text)
    expected = [row for row in ROWS if eval(text, {}, row)]
    assert pa.Table.from_pylist(ROWS).filter(expression).to_pylist() == expected
    assert columns == {name for name in ("lang", "stars", "ok") if name in text}


@pytest.mark.parametrize("text", ["lang = 'en'", "open('x')", "lang == other", "lang + 1", "1 < stars < 3"])
def test_other_python_is_refused(text):
    with pytest.raises(InputError, match=r"(?s)filter .*Allowed"):
        parse(text)

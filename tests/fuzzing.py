"""Random and damaged input for `test_fuzz.py`: values, bytes, names of files, and what may happen to them."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

from boom_ray.errors import BoomError

# fmt: off
#: Texts that have broken a reader before: not Unicode, not a name, not what a template or a number must be.
ODD_TEXTS = [
    "", " ", "\n", "\x00", "a\x00b", "\ud800", "x\udcffy", "\ufeffbom", "\u2028", "é", "日本", "🙂",
    "A" * 300, "{", "}", "{}", "{query}", "Use } {query}", "{instruction!r}{query}", "{query.__class__}",
    "%s", "%", "#", "nan", "inf", "-inf", "1e999", "-1", "0", "007", "1_000", "0x10", "null", "true", "~",
    "no", "[]", "${}", "${NOT_SET}", "..", ".", "a/b", "a//b", "-", "--", "*", "?", "[a", "\\", "'", '"',
    "=", ":", "@", "text",
]
#: URIs of nothing; none of them makes a library wait for the network.
ODD_URIS = [
    "hf://", "hf://x", "hf://a/b/c", "hf://a b/c", "hf://a/b@", "hf://datasets/x", "hf://-/-",
    "hf://../..", "http://localhost", "ftp://x/y", "file://x", "://", "s3:/bucket",
    "s3://user:secret@bucket/x", "x://[", "s3://[::1", "C:\\models",
]
# fmt: on
ODD_NUMBERS = [0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf")]

texts = st.sampled_from(ODD_TEXTS) | st.text(st.characters(), max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([*ODD_NUMBERS, *ODD_URIS])
    | texts
    | st.binary(max_size=4)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def names(*existing: str) -> st.SearchStrategy[str]:
    """Relative paths: of files that exist, of none, and URIs of nothing."""
    odd = texts.filter(lambda text: not text.startswith(("/", "~")) and ".." not in text)
    return st.sampled_from(existing) | st.sampled_from(existing) | odd | st.sampled_from(ODD_URIS)


@st.composite
def damaged(draw: st.DrawFn, value: Any, new: st.SearchStrategy = json_values, most: int = 3) -> Any:
    """A copy of a nested value in which some parts are replaced, deleted, renamed or repeated."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(0, most))):
        container, key = draw(st.sampled_from(_parts(value) or [({"": value}, "")]))
        if isinstance(container, list):
            action = draw(st.sampled_from(["replace", "replace", "delete", "repeat"]))
        else:
            action = draw(st.sampled_from(["replace", "replace", "delete", "rename"]))
        if action == "replace":
            container[key] = draw(new)
        elif action == "repeat":
            container.insert(key, container[key])
        elif action == "rename":
            container[draw(texts)] = container.pop(key)
        else:
            del container[key]
    return value


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """Every part of a nested value, as its container and its key or position."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [pair for key, inner in items for pair in [(value, key), *_parts(inner)]]


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes, most: int = 3) -> bytes:
    """Bytes of a file, cut, overwritten, with something inserted, or in another encoding."""
    for _ in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 40)))
        new = draw(st.binary(max_size=8) | st.sampled_from(ODD_BYTES))
        kind = draw(st.sampled_from(["overwrite", "overwrite", "cut", "encode", "repeat"]))
        if kind == "overwrite":
            content = content[:start] + new + content[end:]
        elif kind == "cut":
            content = content[:start]
        elif kind == "repeat":
            content = content[:start] + content[start:end] * 3 + content[end:]
        else:
            encoding = draw(st.sampled_from(["utf-16", "utf-8-sig", "latin-1", "utf-32"]))
            content = content.decode("latin-1").encode(encoding)
    return content


# fmt: off
ODD_BYTES = [
    b"\xff", b"\xed\xa0\x80", b"\x00", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n", b"\t", b'"', b"\\ud800", b"{",
    b"[" * 100_000, b"- " * 2000, b"\xc2\x85", b"NaN", b"1e400", b"9" * 5000, b"&a [*a]", b"2001-99-99",
    b"!!int x", b"!!binary x", b"!!python/object:os.system {}", b"<<: 1", b"? [a]\n: b", b"1:99", b"%TAG",
]
# fmt: on


@st.composite
def damaged_file(draw: st.DrawFn, name: str, content: bytes) -> bytes:
    """Content of a file with other values in it if it is JSON, or with other bytes."""
    if name.endswith(".json") and draw(st.booleans()):
        return json.dumps(draw(damaged(json.loads(content)))).encode()
    return draw(damaged_bytes(content))


@contextmanager
def only_errors_for_users() -> Iterator[None]:
    """Whatever happens within the block is a result or a `BoomError` with a sentence."""
    try:
        yield
    except BoomError as error:
        assert str(error).strip(), repr(error)

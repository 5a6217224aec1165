"""URIs as text: keys stand as the store has them, options at the end, and secrets are refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boom_ray import storage
from boom_ray.errors import InputError
from boom_ray.storage.uri import parse

OPTIONS = "region=eu-west-1&endpoint_override=127.0.0.1:9000"
KEYS = [
    *(
        "a%2Db.txt",
        "a b.txt",
        "a#b.txt",
        "a?b.txt",
        "a%b",
        "über/文.txt",
        "a+b&c=d",
        "a::b",
        "a@b:c",
        "~t",
        "a\\b",
    ),
    *(
        "what?",
        "a?b=c",
        "a?region=x",
        "a?region=x?",
        "a?region=x??",
        "?region=x",
        "line\nbreak",
        "a?x=1&region=y",
    ),
]
keys = st.lists(
    st.sampled_from(["a", "?", "region=", "&", "x=", "/", "%2F", "#", "\n", "é"]), min_size=1
).map("".join)


@pytest.mark.parametrize("options", ["", OPTIONS])
@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_joined_and_named_as_it_is(key, options):
    directory = f"s3://bucket/in %20#{'?' if options else ''}{options}"
    uri = storage.join(directory, key)
    assert parse(uri) == ("s3", "bucket", f"in %20#/{key}", options)
    assert storage.absolute(uri) == uri
    assert storage.name_of(uri) == key.split("/")[-1]
    assert storage.without_scheme(uri) == f"bucket/in %20#/{key}"
    assert storage.parent_of(storage.join(uri, "below")) == uri


@settings(deadline=None, max_examples=300)
@given(
    keys.filter(lambda key: key.strip("/") == key), st.sampled_from(["", "region=x", "scheme=http&region=y"])
)
def test_parts_of_any_key_come_back(key, options):
    uri = storage.join("s3://bucket" + ("?" + options if options else ""), key)
    assert parse(uri) == ("s3", "bucket", key, options)
    assert str(parse(uri)) == uri


@pytest.mark.parametrize(("uri", "key", "options"), [
    ("s3://b/a.txt?region=x", "a.txt", "region=x"), ("s3://b/a.txt?regoin=x", "a.txt?regoin=x", ""),
    ("s3://b/a.txt?region=x&regoin=y", "a.txt", "region=x&regoin=y"), ("s3://b?regoin=x", "", "regoin=x"),
    ("gs://b/a?region=x", "a?region=x", ""), ("gs://b/a?project_id=x", "a", "project_id=x"),
    ("hf://datasets/o/n/a?region=x", "o/n/a", ""),
])  # fmt: skip
def test_only_options_of_the_store_end_a_key(uri, key, options):
    if storage.is_hub(uri):
        assert storage.name_of(uri) == "a?region=x"
    else:
        assert parse(uri)[2:] == (key, options)


def test_the_root_of_a_bucket_has_no_parent():
    assert storage.parent_of("s3://bucket/a?region=x") == "s3://bucket?region=x"
    assert storage.parent_of("s3://bucket") == "s3://bucket"
    assert storage.parent_of("/rows.yaml") == "/" and storage.parent_of("/") == "/"
    assert storage.name_of("s3://bucket?region=x") == "bucket"


@pytest.mark.parametrize("path", ["a%2Db.txt", "a b#c?d.txt", "a?region=x", "[x]*.txt", "ü://x", "é", "a\nb"])
def test_local_names_are_literal(path, tmp_path):
    uri = storage.absolute(f"./{path}", str(tmp_path))
    storage.write_bytes(uri, path.encode())
    assert storage.read_bytes(uri) == path.encode()
    assert storage.is_local(uri) and storage.join(str(tmp_path), *storage.list_files(str(tmp_path))) == uri


@pytest.mark.parametrize(("uri", "variable"), [
    ("s3://user:secret-1@bucket/in", "AWS_SECRET_ACCESS_KEY"),
    ("s3://secret-1@bucket/in", "AWS_ACCESS_KEY_ID"),
    ("s3://bucket/in?secret_key=secret-1", "AWS_SECRET_ACCESS_KEY"),
    ("s3://bucket/in?region=x&session_token=secret-1", "AWS_SECRET_ACCESS_KEY"),
    ("gs://bucket/in?access_token=secret-1", "GOOGLE_APPLICATION_CREDENTIALS"),
    ("abfss://c:secret-1@a.dfs.core.windows.net/in", "AZURE_CLIENT_SECRET"),
    ("abfss://c@a.dfs.core.windows.net/in?sv=1&sig=secret-1", "AZURE_CLIENT_SECRET"),
])  # fmt: skip
def test_secrets_are_refused_and_removed_and_never_repeated(uri, variable):
    for use in (storage.absolute, storage.read_bytes, storage.filesystem):
        with pytest.raises(InputError, match=variable) as refusal:
            use(uri)
        assert "secret-1" not in str(refusal.value)
    shown = storage.without_credentials(uri)
    assert "secret-1" not in shown and storage.name_of(shown) == "in"


@pytest.mark.parametrize("uri", [
    *("s3://bucket/a@b", "/data/a@b", "hf://name@main", "gs://anonymous@bucket/a", "s3://bucket/a?sig=1"),
    "abfss://container@account.dfs.core.windows.net/a",
])  # fmt: skip
def test_what_is_no_secret_stays(uri):
    assert storage.absolute(uri) == uri
    assert storage.without_credentials(uri) == uri


@pytest.mark.parametrize(
    "uri", ["s3:/bucket/a", "hf:/owner/name", "gs:/b", "a\0b", "file://host/a", "file:///a%20b"]
)
def test_what_is_neither_path_nor_uri_is_refused(uri):
    with pytest.raises(InputError):
        storage.absolute(uri)


def test_a_file_uri_is_its_path():
    assert storage.absolute("file:///data/a b.jsonl") == "/data/a b.jsonl"

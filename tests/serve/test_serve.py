"""The endpoint over HTTP: vectors equal those of sentence-transformers, bad requests get clear errors."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import openai
import pytest
import ray
from ray import serve
from sentence_transformers import SentenceTransformer

from boom_ray.errors import InputError, NotFoundError
from boom_ray.serve.app import serve_models
from tests import texts

KEY = "a key of the tests"
pytestmark = pytest.mark.usefixtures("ray_cluster")


@dataclass
class Server:
    """A running endpoint, its client, and the model as sentence-transformers loads it."""

    url: str
    client: openai.OpenAI
    reference: SentenceTransformer

    def expected(self, texts: list[str]) -> np.ndarray:
        return self.reference.encode(texts)

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        length = self.reference.max_seq_length
        return self.reference.tokenizer(texts, truncation=True, max_length=length)["input_ids"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(url: str, body: bytes | None = None, key: str | None = KEY) -> tuple[int, dict[str, str], Any]:
    """Status, headers and parsed body of a GET, or of a POST of `body`."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
            return answer.status, dict(answer.headers), json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), json.load(error)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


SCRIPT = """
import sys
from boom_ray.runtime import cluster
from boom_ray.runtime.console import show_log
from boom_ray.serve.app import serve_models
show_log()
cluster.connect()
serve_models([sys.argv[1]], port=int(sys.argv[2]))
"""


def test_the_command_reports_when_it_is_ready_and_ends_cleanly_on_sigterm(published_qwen3):
    port = free_port()
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", SCRIPT, published_qwen3, str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        ready = [process.stdout.readline() for _ in range(3)]
        url = f"http://127.0.0.1:{port}"
        assert f"serving test v0001 at {url}" in ready[0]
        assert f"curl {url}/v1/embeddings" in ready[1] and "openai.OpenAI(" in ready[2]
        status, _, body = call(f"{url}/v1/embeddings", b'{"input": "no key is needed"}', key=None)
        assert (status, len(body["data"])) == (200, 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), 5):
        pass


def test_a_model_that_cannot_be_loaded_is_one_clear_error(published_qwen3, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        os.symlink(os.path.join(published_qwen3, name), tmp_path / name)
    with pytest.raises(InputError, match=f"{tmp_path}: .*cannot be loaded as a model") as refusal:
        serve_models([str(tmp_path)], port=free_port(), blocking=False)
    assert "\n" not in str(refusal.value)
    assert not serve.status().applications


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "somewhere.example"])
def test_an_address_that_other_machines_reach_needs_a_key(host, published_qwen3, monkeypatch):
    monkeypatch.delenv("BOOM_RAY_API_KEY", raising=False)
    with pytest.raises(InputError, match="BOOM_RAY_API_KEY"):
        serve_models([published_qwen3], host, free_port(), blocking=False)


def test_a_port_in_use_is_named(published_qwen3):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}"):
            serve_models([published_qwen3], port=port, blocking=False)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="nothing-here"):
        serve_models([str(tmp_path / "nothing-here")], port=free_port(), blocking=False)


@pytest.fixture(scope="module", params=["published_minilm", "published_qwen3"])
def server(request) -> Iterator[Server]:
    model, port = request.getfixturevalue(request.param), free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOOM_RAY_API_KEY", KEY)
        serve_models([model], port=port, blocking=False)
    url = f"http://127.0.0.1:{port}"
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    yield Server(url, client, SentenceTransformer(model, device="cpu"))
    serve.shutdown()


@pytest.fixture(scope="module")
def mixed() -> list[str]:
    """50 texts from one letter to many words, none longer than the models' maximum."""
    pieces = [text[:120] for pair in texts.functions("email") for text in pair][:47]
    return ["a", "two words", "ünïcödé ✓ 漢字", *pieces]


def received(answer: openai.types.CreateEmbeddingResponse) -> np.ndarray:
    """The vectors of a response [n, d]; the client decodes base64 only if it was not requested."""
    rows = [row.embedding for row in sorted(answer.data, key=lambda row: row.index)]
    return np.stack(
        [np.frombuffer(base64.b64decode(row), "<f4") if isinstance(row, str) else row for row in rows]
    )


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_the_official_client_gets_the_vectors_of_sentence_transformers(server, mixed, options):
    answer = server.client.embeddings.create(model="test", input=mixed, **options)
    assert isinstance(answer.data[0].embedding, str) == (options == {"encoding_format": "base64"})
    assert cosines(received(answer), server.expected(mixed)).min() >= 0.99999
    num_tokens = sum(map(len, server.token_ids(mixed)))
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (num_tokens, num_tokens)
    assert answer.model == "test"


def test_leading_dimensions_are_normalized_again(server, mixed):
    answer = server.client.embeddings.create(model="test", input=mixed[:9], dimensions=16)
    leading = server.expected(mixed[:9])[:, :16]
    expected = leading / np.linalg.norm(leading, axis=1, keepdims=True)
    assert np.abs(received(answer) - expected).max() < 1e-5


def test_token_ids_are_embedded_unchanged(server, mixed):
    token_ids = server.token_ids(mixed[:5])
    expected = server.expected(mixed[:5])
    several = server.client.embeddings.create(model="test", input=token_ids)
    one = server.client.embeddings.create(model="test", input=token_ids[3])
    assert cosines(received(several), expected).min() >= 0.99999
    assert cosines(received(one), expected[3:4]).min() >= 0.99999


def test_a_prompt_is_prepended(server, mixed):
    options = {"extra_body": {"prompt_name": "query"}}
    answer = server.client.embeddings.create(model="test", input=mixed[3], **options)
    prompt = server.reference.prompts["query"]
    assert cosines(received(answer), server.expected([prompt + mixed[3]])).min() >= 0.99999
    assert cosines(received(answer), server.expected([mixed[3]])).max() < 0.999


def test_a_long_text_is_refused_with_limit_and_length_or_truncated_on_request(server):
    long = "word " * 700
    length = len(server.reference.tokenizer(long)["input_ids"])
    assert length > server.reference.max_seq_length == 128
    with pytest.raises(openai.UnprocessableEntityError) as refusal:
        server.client.embeddings.create(model="test", input=["short", long])
    assert refusal.value.code == "context_length_exceeded"
    assert all(part in refusal.value.message for part in ("input 1", f"{length} tokens", "128"))

    answer = server.client.embeddings.create(model="test", input=long, extra_body={"truncate": True})
    assert cosines(received(answer), server.expected([long])).min() >= 0.99999
    assert answer.usage.prompt_tokens == 128


def test_concurrent_requests_get_their_own_vectors(server, mixed):
    expected = server.expected(mixed)

    def send(index: int) -> np.ndarray:
        return received(server.client.embeddings.create(model="test", input=mixed[index : index + 3]))

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(send, range(24)))
    for index, vectors in enumerate(answers):
        assert cosines(vectors, expected[index : index + 3]).min() >= 0.99999


@pytest.mark.parametrize("server", ["published_minilm"], indirect=True)
def test_health_is_answered_while_the_model_computes(server):
    with ThreadPoolExecutor(1) as threads:
        large = threads.submit(
            server.client.embeddings.create, model="test", input=["many words " * 50] * 150
        )
        time.sleep(0.3)
        status, _, body = call(f"{server.url}/health", key=None)
        assert not large.done()
        assert (status, body["status"]) == (200, "ok")
        assert len(large.result().data) == 150


def test_the_model_is_listed_and_every_response_names_its_version(server):
    assert [model.id for model in server.client.models.list()] == ["test"]
    answers = [
        call(f"{server.url}/health", key=None),
        call(f"{server.url}/v1/models"),
        call(f"{server.url}/v1/embeddings", b'{"input": "a"}'),
        call(f"{server.url}/v1/embeddings", b"{"),
        call(f"{server.url}/v1/models", key=None),
        call(f"{server.url}/elsewhere"),
    ]
    assert [status for status, _, _ in answers] == [200, 200, 200, 400, 401, 404]
    assert {headers["x-model-version"] for _, headers, _ in answers} == {"v0001"}


@pytest.mark.parametrize("model", ["test", "v0001", "test:v0001"])
def test_openais_client_names_the_model_by_name_or_version(server, model):
    response = server.client.embeddings.create(model=model, input=["how do I sort a list?"])
    assert cosines(received(response), server.expected(["how do I sort a list?"])).min() >= 0.99999
    assert response.model == "test"


@pytest.mark.parametrize("model", ["v0002", "test:v0002", "Test", "", "v0001:test"])
def test_openais_client_gets_404_for_an_unknown_model(server, model):
    with pytest.raises(openai.NotFoundError) as refusal:
        server.client.embeddings.create(model=model, input=["a"])
    assert (refusal.value.code, refusal.value.param) == ("model_not_found", "model")
    assert repr(model) in refusal.value.message and "test:v0001" in refusal.value.message


@pytest.mark.parametrize("key", [None, "", "wrong", KEY.upper(), "\xfc", KEY[:-1]])
def test_v1_needs_the_key(server, key):
    for path, body in (("models", None), ("embeddings", b'{"input": "a"}'), ("embeddings", b"{")):
        status, _, answer = call(f"{server.url}/v1/{path}", body, key)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")


BAD_REQUESTS = {
    "broken JSON": ('{"input": ', 400, "not valid JSON"),
    "bytes that are not UTF-8": (b'{"input": "\xff"}', 400, "body"),
    "deep nesting": ("[" * 100_000, 400, "body"),
    "not an object": ("[1]", 422, "dictionary"),
    "nothing": ("", 422, "body"),
    "no input": ("{}", 422, "input"),
    "null": ('{"input": null}', 422, "a list of texts"),
    "a number": ('{"input": 5}', 422, "a list of texts"),
    "mixed kinds": ('{"input": ["a", 5]}', 422, "a list of texts"),
    "booleans": ('{"input": [true]}', 422, "a list of texts"),
    "an empty text": ('{"input": ""}', 422, "empty"),
    "an empty text among others": ('{"input": ["a", ""]}', 422, "empty"),
    "an empty list": ('{"input": []}', 422, "empty"),
    "an empty list of tokens": ('{"input": [[1], []]}', 422, "empty"),
    "half a surrogate pair": ('{"input": "\\ud800"}', 422, "surrogate"),
    "an unknown token": ('{"input": [1000000]}', 422, "vocabulary"),
    "a token beyond 64 bits": ('{"input": [1e30, 1]}', 422, "input"),
    "a negative token": ('{"input": [-1]}', 422, "vocabulary"),
    "too many inputs": (json.dumps({"input": ["a"] * 2049}), 422, "2049 texts; allowed: 2048"),
    "an unknown format": ('{"input": "a", "encoding_format": "hex"}', 422, "base64"),
    "too many dimensions": ('{"input": "a", "dimensions": 4096}', 422, "the model has"),
    "no dimensions": ('{"input": "a", "dimensions": 0}', 422, "dimensions"),
    "part of a dimension": ('{"input": "a", "dimensions": 1.5}', 422, "dimensions"),
    "not a number": ('{"input": "a", "dimensions": NaN}', 422, "dimensions"),
    "an unknown prompt": ('{"input": "a", "prompt_name": "quer"}', 422, "document, query"),
    "a prompt before tokens": ('{"input": [1], "prompt_name": "query"}', 422, "prompt"),
    "an unknown key": ('{"input": "a", "dimension": 5}', 422, "allowed: input, model"),
    "an unprintable key": ('{"input": "a", "\\ud800": 5}', 422, "allowed: input, model"),
    "another model": ('{"input": "a", "model": "ada"}', 404, "'ada'"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_are_refused_in_the_shape_of_openai(server, name):
    body, expected, words = BAD_REQUESTS[name]
    status, _, answer = call(
        f"{server.url}/v1/embeddings", body if isinstance(body, bytes) else body.encode()
    )
    assert status == expected, answer
    assert answer.keys() == {"error"}
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert words in answer["error"]["message"]

"""What clients of OpenAI's API and of text-embeddings-inference send, without Ray.

Vectors, tokens and truncation are compared with sentence-transformers and tokenizers.
"""

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from starlette.testclient import TestClient
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from boom_ray.serve.schema import RequestError
from boom_ray.serve.token_frame import TokenFrame
from tests.families import build
from tests.model.test_prompts import PROMPTS, prompted
from tests.serve.local_endpoint import local_endpoint

TEXTS = ["a text", "ünïcödé ✓ 漢字 and much more of it", "how do I sort a list of lists?"]
LONG = " ".join(f"word{number}" for number in range(300))
# "hello world" and "# a heading" in the tokenizer of OpenAI's models (cl100k_base).
TIKTOKEN = [[15339, 1917], [2, 264, 14836]]


class Served:
    """A client of a model, and the model as sentence-transformers loads it."""

    def __init__(self, client: TestClient, model: str) -> None:
        self.client, self.model = client, model
        self.reference = SentenceTransformer(model, device="cpu")
        self.tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def post(self, path: str, body: Any) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refusal(self, path: str, body: Any, status: int = 422) -> dict[str, Any]:
        answer = self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()["error"]

    def vectors(self, **body: Any) -> np.ndarray:
        """Vectors of `/v1/embeddings` [n, d]."""
        return np.array([row["embedding"] for row in self.post("/v1/embeddings", body)["data"]])

    def expected(self, texts: list[str], normalize: bool = True) -> np.ndarray:
        """Vectors of sentence-transformers [n, d], or those of its pooling."""
        if normalize:
            return self.reference.encode(texts)
        pooled = SentenceTransformer(modules=list(self.reference)[:2], device="cpu")
        return pooled.encode(texts)


@pytest.fixture(scope="module", params=["published_minilm", "published_qwen3"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    model = request.getfixturevalue(request.param)
    with local_endpoint(model) as client:
        yield Served(client, model)


@pytest.fixture(scope="module")
def minilm_served(published_minilm: str) -> Iterator[Served]:
    with local_endpoint(published_minilm) as client:
        yield Served(client, published_minilm)


def close(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and float(np.abs(one - other).max()) < 1e-5 * float(np.abs(other).max())


# ── Token ids ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ids", [*TIKTOKEN, TIKTOKEN])
def test_the_token_ids_of_another_tokenizer_are_refused(served, ids):
    error = served.refusal("/v1/embeddings", {"input": ids})
    assert error["code"] in ("foreign_tokens", "unknown_token") and error["param"] == "input"
    assert "check_embedding_ctx_length=False" in error["message"]
    served.refusal("/embed", {"inputs": ids})


def test_one_foreign_text_among_others_is_refused(served):
    own = served.tokenizer.encode("a text").ids
    error = served.refusal("/v1/embeddings", {"input": [own, own[1:-1], own]})
    assert error["code"] == "foreign_tokens" and "input 1" in error["message"]


def test_the_token_ids_of_tokenize_are_the_text(served):
    tokens = served.post("/tokenize", {"inputs": TEXTS})
    ids = [[token["id"] for token in text] for text in tokens]
    assert ids == [encoding.ids for encoding in served.tokenizer.encode_batch(TEXTS)]
    assert close(served.vectors(input=ids), served.expected(TEXTS))
    assert close(served.vectors(input=ids[1]), served.expected(TEXTS[1:2]))


def test_padded_token_ids_are_refused(served):
    ids, pad = served.tokenizer.encode("a text").ids, served.reference.tokenizer.pad_token_id
    for padded in ([*ids, pad, pad], [pad, *ids]):
        error = served.refusal("/v1/embeddings", {"input": [ids, padded]})
        assert error["code"] in ("padded_tokens", "foreign_tokens") and "input 1" in error["message"]


def test_token_ids_that_nothing_identifies_are_refused(qwen3):
    plain = PreTrainedTokenizerFast.from_pretrained(qwen3)
    assert plain("a text")["input_ids"] == plain("a text", add_special_tokens=False)["input_ids"]
    with pytest.raises(RequestError) as refusal:
        TokenFrame.of(plain).check(0, plain("a text")["input_ids"])
    assert refusal.value.body.error.code == "foreign_tokens"


# ── Truncation ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("direction", ["left", "Left", "right", "Right"])
@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_truncation_cuts_the_end_that_the_request_names(served, direction, path):
    served.tokenizer.enable_truncation(served.reference.max_seq_length, direction=direction.lower())
    kept = served.tokenizer.encode(LONG).ids
    whole = served.tokenizer.no_truncation() or served.tokenizer.encode(LONG).ids
    options = {"truncate": True, "truncation_direction": direction}
    expected = served.vectors(input=kept)
    assert close(served.vectors(input=LONG, **options), expected)
    assert close(served.vectors(input=whole, **options), expected)
    assert close(np.array(served.post("/embed", {"inputs": LONG, **options})), expected)


def test_by_default_the_end_of_the_models_tokenizer_is_cut(served):
    assert close(served.vectors(input=LONG, truncate=True), served.expected([LONG]))
    left = served.vectors(input=LONG, truncate=True, truncation_direction="left")
    assert not close(left, served.expected([LONG]))
    assert close(served.vectors(input=LONG, truncate=True), served.expected([LONG])), "no state is left"


@pytest.fixture(scope="module")
def unpooled_prompt(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model of 32 tokens whose prompt `document`, of six tokens, is read and not pooled."""
    path = prompted(minilm, tmp_path_factory.mktemp("unpooled") / "model", include_prompt=False)
    with local_endpoint(path) as client:
        yield Served(client, path)


@pytest.mark.parametrize("num_words", [5, 26, 28, 60])
def test_a_cut_at_the_left_takes_the_tokens_of_the_prompt_first(unpooled_prompt, num_words):
    """With 5 words nothing is cut, with 26 two tokens of the prompt, with 28 four, with 60 all of it."""
    served, text = unpooled_prompt, "word " * num_words
    prompt = served.tokenizer.encode(PROMPTS["document"], add_special_tokens=False).ids
    words = served.tokenizer.encode(text, add_special_tokens=False).ids
    assert (len(prompt), len(words)) == (6, num_words)
    surplus = max(0, 2 + len(prompt) + len(words) - 32)
    cls, end = served.tokenizer.encode("").ids
    ids = [cls, *[*prompt, *words][surplus:], end]
    states = served.reference[0].model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    pooled = states[1 + max(0, len(prompt) - surplus) :].mean(0).detach().numpy()
    options = {"prompt_name": "document", "truncate": True, "truncation_direction": "left"}
    vectors = served.vectors(input=text, normalize=False, **options)
    assert close(vectors, pooled[None])


def test_a_prompt_that_is_not_pooled_is_that_of_the_peer(unpooled_prompt):
    served, texts = unpooled_prompt, [*TEXTS, "word " * 60]
    expected = served.reference.encode(texts, prompt_name="document", normalize_embeddings=True)
    vectors = served.vectors(input=texts, prompt_name="document", truncate=True)
    assert close(vectors, expected)
    assert not close(vectors, served.vectors(input=[PROMPTS["document"] + it for it in texts], truncate=True))


def test_a_prompt_that_leaves_no_token_to_pool_is_refused(tmp_path):
    """The tokenizer adds no end token, which would be pooled."""
    base = build("llama", str(tmp_path / "base"))
    path = prompted(base, tmp_path / "model", include_prompt=False, prompts={"query": "word " * 40})
    with local_endpoint(path) as client:
        options = {"input": "a text", "prompt_name": "query", "truncate": True}
        answer = client.post("/v1/embeddings", json=options)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "no_pooled_token")
        assert client.post("/embed", json={"inputs": "a text", "truncate": True}).status_code == 200


# ── Options ────────────────────────────────────────────────────────────────────────────────────────


def test_null_is_the_default_of_every_option(served):
    options = dict.fromkeys(
        ("encoding_format", "dimensions", "user", "model", "prompt_name", "input_type", "truncate", "unknown")
    )
    assert close(served.vectors(input=TEXTS, **options), served.expected(TEXTS))
    options = dict.fromkeys(("truncate", "truncation_direction", "normalize", "prompt_name", "dimensions"))
    assert close(np.array(served.post("/embed", {"inputs": TEXTS, **options})), served.expected(TEXTS))
    body = {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": None}
    assert len(served.post("/similarity", body)) == 1
    body = {"inputs": "a", "add_special_tokens": None, "prompt_name": None}
    assert served.post("/tokenize", body) == served.post("/tokenize", {"inputs": "a"})


@pytest.mark.parametrize("path", ["/", "/embed"])
def test_vectors_without_normalization(served, path):
    pooled = served.expected(TEXTS, normalize=False)
    assert float(np.abs(np.linalg.norm(pooled, axis=1) - 1).min()) > 0.01
    assert close(np.array(served.post(path, {"inputs": TEXTS, "normalize": False})), pooled)
    assert close(np.array(served.post(path, {"inputs": TEXTS})), served.expected(TEXTS))
    leading = served.post(path, {"inputs": TEXTS, "normalize": False, "dimensions": 8})
    assert close(np.array(leading), pooled[:, :8])
    answer = served.post(
        "/v1/embeddings", {"input": TEXTS[0], "normalize": False, "encoding_format": "base64"}
    )
    decoded = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    assert close(decoded[None], pooled[:1])


@pytest.mark.parametrize(("path", "body", "key"), [
    ("/v1/embeddings", {"input": "a", "dimension": 16}, "dimension"),
    ("/embed", {"inputs": "a", "normalise": False}, "normalise"),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"], "k": 1}}, "k"),
    ("/decode", {"ids": [1], "skip": True}, "skip"),
])  # fmt: skip
def test_an_unknown_option_is_refused_by_name(served, path, body, key):
    error = served.refusal(path, body)
    assert (error["code"], error["param"]) == ("unknown_key", key)


# ── Routes ─────────────────────────────────────────────────────────────────────────────────────────


def test_openais_routes_exist_without_a_version(served):
    answer = served.post("/embeddings", {"input": TEXTS})
    assert answer == served.post("/v1/embeddings", {"input": TEXTS})
    for path in ("/models", "/v1/models"):
        assert [model["id"] for model in served.client.get(path).json()["data"]] == ["test"]
    for name in ("test", "v0001", "test:v0001", "test%3Av0001"):
        for path in (f"/v1/models/{name}", f"/models/{name}"):
            assert served.client.get(path).json()["id"] == "test"


@pytest.mark.parametrize("name", ["other", "owner/name", "owner%2Fname", "%ff%00", ".."])
def test_a_model_that_is_not_served_has_no_entry(served, name):
    answer = served.client.get(f"/v1/models/{name}")
    assert answer.status_code == 404
    assert name == ".." or answer.json()["error"]["code"] == "model_not_found"


def test_similarity_is_the_cosine(served):
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS}, "parameters": {"truncate": True}}
    expected = served.reference.similarity(served.reference.encode(TEXTS[:1]), served.reference.encode(TEXTS))
    assert close(np.array([served.post("/similarity", body)]), expected.numpy())


def test_decode_restores_texts(served):
    ids = [encoding.ids for encoding in served.tokenizer.encode_batch(TEXTS)]
    for skip in (True, False):
        body = {"ids": ids, "skip_special_tokens": skip}
        assert served.post("/decode", body) == served.tokenizer.decode_batch(ids, skip_special_tokens=skip)
    assert served.post("/decode", {"ids": ids[0]}) == served.tokenizer.decode_batch(ids[:1])
    assert served.refusal("/decode", {"ids": [[10**30]]})["code"] == "unknown_token"


def test_tokens_have_the_text_and_place_of_tei(served):
    for texts in (TEXTS, TEXTS[:1]):
        encodings = served.tokenizer.encode_batch(texts, add_special_tokens=True)
        for text, tokens, encoding in zip(
            texts, served.post("/tokenize", {"inputs": texts}), encodings, strict=True
        ):
            assert [token["special"] for token in tokens] == [bool(it) for it in encoding.special_tokens_mask]
            plain = [token for token in tokens if not token["special"]]
            assert all(token["text"] == text[token["start"] : token["stop"]] for token in plain)
            assert all(token["start"] is None for token in tokens if token["special"])
    assert served.refusal("/tokenize", {"inputs": []})["code"] == "empty_input"


def test_tokenize_never_pads(minilm):
    """The file of the base tells its tokenizer to pad, until its first use with other settings."""
    texts = ["a", "a much longer text than the other"]
    expected = Tokenizer.from_file(f"{minilm}/tokenizer.json")
    assert len(expected.encode_batch(texts)[0].ids) > 3
    expected.no_padding()
    with local_endpoint(minilm) as client:
        for _ in range(2):
            answer = client.post("/tokenize", json={"inputs": texts}).json()
            ids = [[token["id"] for token in tokens] for tokens in answer]
            assert ids == [encoding.ids for encoding in expected.encode_batch(texts)]
            client.post("/embed", json={"inputs": texts})


@pytest.mark.parametrize("path", ["/embed_all", "/embed_sparse", "/predict", "/rerank"])
def test_routes_of_other_kinds_of_models_have_the_status_of_tei(served, path):
    assert served.refusal(path, {"inputs": "a"}, 424)["code"] == "unsupported_model"


@pytest.mark.parametrize(("method", "path", "status"), [
    ("POST", "/v1/chat/completions", 404), ("POST", "/v1/embed", 404),
    ("GET", "/embed", 405), ("POST", "/health", 405),
])  # fmt: skip
def test_other_routes_and_methods_are_explained(served, method, path, status):
    answer = served.client.request(method, path, json={})
    assert answer.status_code == status and "/docs" in answer.json()["error"]["message"]


def test_a_body_without_its_type_is_explained(served):
    answer = served.client.post("/v1/embeddings", content=b'{"input": "a"}')
    assert answer.status_code == 422 and "application/json" in answer.json()["error"]["message"]


def test_a_text_without_tokens_is_refused(minilm_served):
    ids = minilm_served.tokenizer.encode("\u200b\u0000").ids
    assert minilm_served.tokenizer.decode(ids) == ""
    assert np.isfinite(minilm_served.vectors(input="\u200b\u0000")).all(), "its special tokens are embedded"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["input", "inputs", "ids", "model", "dimensions", "truncate", "truncation_direction", "normalize",
        "prompt_name", "encoding_format", "parameters", "add_special_tokens", "options"]  # fmt: skip
VALID = {
    "input": TEXTS, "inputs": TEXTS, "ids": [1, 2], "truncate": True, "normalize": False,
    "parameters": {"truncate": True}, "prompt_name": "query", "dimensions": 4,
}  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/embeddings", "/", "/similarity", "/tokenize", "/decode", "/rerank"])
def test_no_body_is_an_internal_error(minilm_served, path):
    values = JSON | st.sampled_from(list(VALID.values()))
    bodies = (
        JSON
        | st.dictionaries(st.sampled_from(KEYS), values)
        | st.fixed_dictionaries(
            {key: st.just(value) | JSON for key, value in VALID.items() if key in ("input", "inputs", "ids")}
        )
    )

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(body=bodies)
    def check(body: Any) -> None:
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        answer = minilm_served.client.post(path, content=content, headers=headers)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert answer.json()["error"].keys() == {"message", "type", "param", "code"}

    check()

"""The encoder: its vectors equal those of sentence-transformers and transformers."""

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from boom_ray.model import directory, inference
from boom_ray.model.padded_layout import PaddedLayout, chunk_by_padded_tokens, pool
from tests import texts

FAMILIES = ["published_minilm", "published_qwen3"]


@pytest.fixture(scope="module")
def mixed() -> list[str]:
    """50 texts, from one word to longer than the maximum of the model."""
    pieces = [text for pair in texts.functions("email") for text in pair][:45]
    return ["a", "two words", "x " * 500, "ünïcödé ✓ 漢字", pieces[0] * 9, *pieces]


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 32])
def test_vectors_match_sentence_transformers(family, batch_size, mixed, request):
    path = request.getfixturevalue(family)
    theirs = SentenceTransformer(path, device="cpu").encode(mixed, batch_size=batch_size)
    ours = directory.load_encoder(path).encode(mixed)
    assert cosines(ours, theirs).min() >= 0.99999
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_query_prompt_matches_sentence_transformers(family, mixed, request):
    path = request.getfixturevalue(family)
    theirs = SentenceTransformer(path, device="cpu").encode(mixed[:8], prompt_name="query")
    encoder = directory.load_encoder(path)
    assert cosines(encoder.encode(mixed[:8], encoder.spec.prompts["query"]), theirs).min() >= 0.99999


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 32])
def test_vectors_match_transformers_with_our_pooling(family, batch_size, mixed, request):
    path = request.getfixturevalue(family)
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    spec, expected = directory.read_spec(path), []
    for start in range(0, len(mixed), batch_size):
        batch = mixed[start : start + batch_size]
        encoded = tokenizer(batch, padding=True, padding_side="right", truncation=True,
                            max_length=spec.max_length, return_tensors="pt")  # fmt: skip
        with torch.no_grad():
            states = model(**encoded).last_hidden_state
        lengths = encoded["attention_mask"].sum(1)
        vectors = pool(states, lengths, torch.zeros_like(lengths), spec.pooling)
        expected.append(torch.nn.functional.normalize(vectors, dim=-1))
    assert cosines(directory.load_encoder(path).encode(mixed), torch.cat(expected).numpy()).min() >= 0.99999


def test_vectors_are_independent_of_padding_and_batch(published_qwen3, mixed):
    encoder = directory.load_encoder(published_qwen3)
    alone = np.concatenate([encoder.encode([text]) for text in mixed[:10]])
    assert np.abs(encoder.encode(mixed)[:10] - alone).max() < 1e-5


def test_padding_exceeds_an_eighth_only_in_small_chunks():
    lengths = np.random.default_rng(0).integers(1, 512, 1000)
    chunks = chunk_by_padded_tokens(lengths, 10**6)
    for chunk in chunks:
        longest, shortest = lengths[chunk].max(), lengths[chunk].min()
        assert shortest * 8 >= longest * 7 or (len(chunk) - 1) * longest < 512
    assert sum(len(chunk) * lengths[chunk].max() for chunk in chunks) < 1.1 * lengths.sum()


@pytest.mark.parametrize("budget", [1, 64, 10**6])
def test_chunks_contain_every_text_once_within_the_budget(budget):
    lengths = np.random.default_rng(0).integers(1, 60, 100)
    chunks = chunk_by_padded_tokens(lengths, budget)
    assert sorted(np.concatenate(chunks).tolist()) == list(range(100))
    assert all(len(chunk) == 1 or len(chunk) * lengths[chunk].max() <= budget for chunk in chunks)


def test_on_a_gpu_padding_is_saved_in_large_chunks_only():
    lengths = np.random.default_rng(0).integers(1, 512, 2000)
    layout = PaddedLayout("mean", 0, False, min_chunk_tokens=8192)
    *chunks, _ = layout.chunks(lengths, 65536)
    sizes = [len(chunk) * lengths[chunk].max() for chunk in chunks]
    assert min(sizes) >= 8192 and max(sizes) <= 65536


def python_steps(call: Callable[[], Any]) -> int:
    """Bytecode instructions that Python executes in a call."""
    steps = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return steps


@pytest.mark.parametrize("family", FAMILIES)
def test_no_step_of_python_is_for_a_single_text(family, request):
    encoder = directory.load_encoder(request.getfixturevalue(family))
    few, many = ["a text of words"] * 4, ["a text of words"] * 400
    for work in (
        lambda texts: encoder.tokenize(texts, prompt="query: "),
        lambda texts: encoder.encode_tokens(encoder.tokenize(texts), 10**6),
    ):
        work(few)  # imports and caches
        # Not equal: the garbage collector calls Python too.
        assert python_steps(partial(work, many)) < python_steps(partial(work, few)) + len(many) // 2


def test_precision_is_that_of_the_device(published_qwen3):
    assert inference.precision("cuda") == torch.bfloat16
    assert inference.load(published_qwen3, "cpu").transformer.dtype == torch.float32

"""Packed batches: the vectors, loss and gradients of padded ones, in few passes that wait for nothing."""

import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2Model, Lfm2Config, Lfm2Model

from boom_ray.errors import InputError
from boom_ray.model import directory, packing
from boom_ray.model.encoder import Encoder
from boom_ray.model.packed_layout import PackedLayout, chunk_by_tokens
from boom_ray.model.padded_layout import PaddedLayout
from boom_ray.model.tokens import Tokens
from boom_ray.recipe import BaseModelSource
from tests import families

ENCODERS = ("bert", "distilbert", "roberta", "xlm-roberta", "albert", "electra", "modernbert")
DECODERS = ("gpt2", "opt", "llama")
PADDED = ("mpnet", "deberta", "deberta-v1", "deberta-relative", "t5", "bloom")
WINDOW = 8


@pytest.fixture(scope="module", params=[*ENCODERS, *DECODERS, "mistral", "minilm", "qwen3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base model of a family that can run packed; ModernBERT and Mistral with windows of few tokens."""
    if request.param in ("minilm", "qwen3"):
        return str(request.getfixturevalue(request.param))
    path = str(tmp_path_factory.mktemp("packed") / request.param)
    families.build("llama" if request.param == "mistral" else request.param, path)
    if request.param == "modernbert":
        change_config(path, local_attention=WINDOW, global_attn_every_n_layers=2)
    if request.param == "mistral":
        change_config(path, model_type="mistral", architectures=["MistralModel"], sliding_window=WINDOW)
    return path


def change_config(path: str, **values: Any) -> None:
    name = os.path.join(path, "config.json")
    with open(name, encoding="utf-8") as file:
        config = json.load(file)
    with open(name, "w", encoding="utf-8") as file:
        json.dump({key: value for key, value in config.items() if key != "layer_types"} | values, file)


def load(path: str, attention: Any, pooling: Any = None) -> Encoder:
    return directory.load_encoder(path, BaseModelSource(path=path, pooling=pooling), attention=attention)


def some_tokens(encoder: Encoder, skipped: int = 0) -> Tokens:
    """Texts of 1 to 60 tokens of random ids that are not special."""
    draw = np.random.default_rng(0)
    lengths = np.array([1, 60, 2, 33, 1, 17, 9, 1, 40])
    ids = draw.integers(10, encoder.transformer.config.vocab_size, lengths.sum()).astype(np.int32)
    return Tokens(ids, lengths, np.where(lengths > skipped, skipped, 0))


def gradients(encoder: Encoder, tokens: Tokens) -> tuple[float, dict[str, torch.Tensor]]:
    """A contrastive loss against random vectors, and the gradient of each weight."""
    vectors = encoder(*encoder.collate(tokens))
    others = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    loss = cross_entropy(vectors @ others.T, torch.arange(len(vectors)))
    loss.backward()
    found = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    return loss.item(), found


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_vectors_and_gradients_equal_those_of_padded_batches(base, pooling):
    if pooling == "lasttoken" and "gpt2" not in base and "qwen3" not in base:
        pytest.skip("one decoder with the end token of each kind is enough")
    padded, packed = load(base, "auto", pooling), load(base, "varlen", pooling)
    assert isinstance(padded.layout, PaddedLayout) and isinstance(packed.layout, PackedLayout)
    for skipped in (0, 3):
        tokens = some_tokens(packed, skipped)
        difference = packed.encode_tokens(tokens) - padded.encode_tokens(tokens)
        assert np.abs(difference).max() < 1e-6
        assert np.abs(packed.encode_tokens(tokens, 64) - padded.encode_tokens(tokens)).max() < 1e-6
    (loss, found), (expected_loss, expected) = (gradients(one, tokens) for one in (packed, padded))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert found.keys() == expected.keys()
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * norm, name


def test_token_types_are_those_of_padded_batches(bert):
    """The tiny BERT has random embeddings of token types, which MiniLM's zeros would not show."""
    padded, packed = load(bert, "auto"), load(bert, "varlen")
    with torch.no_grad():
        for encoder in (padded, packed):
            encoder.transformer.embeddings.token_type_embeddings.weight[0] = torch.arange(32.0)
    tokens = some_tokens(packed)
    assert np.abs(packed.encode_tokens(tokens) - padded.encode_tokens(tokens)).max() < 1e-6


@pytest.mark.parametrize("family", PADDED)
def test_models_that_cannot_run_packed_stay_padded(family, tmp_path, monkeypatch, caplog):
    path = families.build(family, str(tmp_path / "model"))
    with pytest.raises(InputError, match=r"train\.execution\.attention: got varlen"):
        load(path, "varlen")
    monkeypatch.setattr(packing, "_has_kernel", lambda encoder: True)  # as on a GPU
    with caplog.at_level(logging.INFO, logger="boom_ray"):
        encoder = load(path, "auto")
    assert isinstance(encoder.layout, PaddedLayout) and "runs padded" in caplog.text
    vectors, expected = (one.encode(["a", "two words"]) for one in (encoder, load(path, "sdpa" if
        type(encoder.transformer)._supports_sdpa else "eager")))  # fmt: skip
    assert np.array_equal(vectors, expected)


@pytest.mark.parametrize(
    ("model", "config", "reason"),
    [
        (Gemma2Model, Gemma2Config(attn_logit_softcapping=5.0), "softcap"),
        (Lfm2Model, Lfm2Config(full_attn_idxs=[1]), "depends on the text before"),
    ],
)
def test_models_with_other_terms_or_layers_stay_padded(model, config, reason, qwen3, tmp_path):
    """Gemma 2 caps its scores; LFM2 has convolutions over neighbouring tokens, whichever their text."""
    path = str(tmp_path / "model")
    directory.load_encoder(qwen3).tokenizer.save_pretrained(path)
    for key, value in {**families.DECODER, "vocab_size": 1000, "pad_token_id": 0}.items():
        setattr(config, key, value)
    config.layer_types = config.layer_types[:2]
    torch.manual_seed(0)
    model(config).save_pretrained(path)
    with pytest.raises(InputError, match=reason):
        load(path, "varlen", "mean")


class Waiting(TorchDispatchMode):
    """Operations that make the CPU wait for a device: values or shapes that it must know."""

    NAMES = ("item", "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.NAMES:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_packed_pass_waits_for_nothing(base):
    encoder = load(base, "varlen", "mean")
    batch = encoder.collate(some_tokens(encoder, 3))
    encoder(*batch).sum().backward()  # what is made once is made
    with Waiting() as waiting:
        encoder(*batch).sum().backward()
        assert waiting.seen == []
        torch.ones(3).nonzero()
    assert len(waiting.seen) == 1, "the instrument counts"


@given(st.lists(st.integers(0, 60), max_size=80), st.integers(1, 400))
def test_chunks_of_packed_texts_are_few_and_equally_large(lengths, budget):
    sizes = np.array(lengths, dtype=np.int64)
    chunks = chunk_by_tokens(sizes, budget)
    assert sorted(index for chunk in chunks for index in chunk.tolist()) == list(range(len(lengths)))
    clipped = np.minimum(sizes, budget)
    totals = [int(clipped[chunk].sum()) for chunk in chunks]
    assert all(total <= budget for total in totals)
    if chunks:
        longest = clipped.max()
        assert max(totals) - min(totals) <= longest
        assert len(chunks) <= max(1, np.ceil(clipped.sum() / max(1, budget - longest)))


@pytest.fixture
def tokens() -> Iterator[Tokens]:
    yield Tokens.of([[5, 6], [], [7], [8, 9, 1]], [1, 0, 0, 2])


def test_tokens_are_chosen_and_joined_like_lists(tokens):
    assert tokens.lists() == [[5, 6], [], [7], [8, 9, 1]] and len(tokens) == 4
    chosen = tokens[np.array([3, 0, 1, 3])]
    assert chosen.lists() == [[8, 9, 1], [5, 6], [], [8, 9, 1]]
    assert chosen.skipped.tolist() == [2, 1, 0, 2]
    assert tokens[1:3].lists() == [[], [7]]
    assert Tokens.concatenate([tokens[2:], tokens[:1]]).lists() == [[7], [8, 9, 1], [5, 6]]
    assert Tokens.of([]).lists() == [] and len(Tokens.of([])) == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_ids_are_left_out_like_items_of_lists(parts):
    """Each text is some ids that stay, some that are left out, and some that stay."""
    lists = [list(range(1, 1 + sum(one))) for one in parts]
    first, counts = np.array([*parts, (0, 0, 0)])[:-1, :2].T
    expected = [
        ids[:start] + ids[start + count :] for ids, (start, count, _) in zip(lists, parts, strict=True)
    ]
    found = Tokens.of(lists, 1).without(first, counts)
    assert found.lists() == expected and found.skipped.tolist() == [1] * len(parts)

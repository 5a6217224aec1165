"""Texts without tokens: zeros as in sentence-transformers, or an error; never NaN."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer

from boom_ray.embed.embed_options import EmbedOptions
from boom_ray.embed.embedding_run import embed
from boom_ray.embed.tokens import TokenCheck
from boom_ray.errors import InputError
from boom_ray.model import directory

TEXTS = ["a", "", "b c", ""]


@pytest.fixture(scope="module")
def mean_pooled(qwen3, tmp_path_factory) -> str:
    """A model with mean pooling whose tokenizer adds no special tokens, as sentence-transformers saves it."""
    path = str(tmp_path_factory.mktemp("mean") / "model")
    transformer = Transformer(qwen3)
    pooling = Pooling(transformer.get_word_embedding_dimension(), "mean")
    SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu").save(path)
    return path


def test_vectors_equal_those_of_sentence_transformers(mean_pooled):
    expected = SentenceTransformer(mean_pooled, device="cpu").encode(TEXTS)
    found = directory.load_encoder(mean_pooled).encode(TEXTS)
    assert np.abs(found - expected).max() < 1e-5
    assert not found[1].any() and not found[3].any() and np.isfinite(found).all()
    assert directory.load_encoder(mean_pooled).encode(["", ""]).tolist() == np.zeros((2, 32)).tolist()


def test_a_check_is_needed_only_if_nothing_adds_tokens(mean_pooled, published_minilm, published_qwen3):
    assert TokenCheck.of(mean_pooled, "").lacking(TEXTS) == [False, True, False, True]
    assert TokenCheck.of(mean_pooled, "Find: ") is None
    assert TokenCheck.of(published_minilm, "") is None and TokenCheck.of(published_qwen3, "") is None


def test_they_are_refused_with_their_ids_or_stored_as_zeros(mean_pooled, tmp_path, ray_cluster):
    (tmp_path / "in.csv").write_text('id,text\nx1,a\nx2,""\nx3,b c\n')
    source, target = str(tmp_path / "in.csv"), str(tmp_path / "out")
    with pytest.raises(InputError, match=r"(?s)1 texts .* no tokens.*'x2'"):
        embed(mean_pooled, source, target, EmbedOptions(empty_text="embed"))
    embed(mean_pooled, source, target, EmbedOptions(empty_text="embed", no_tokens="zeros"))
    table = pq.read_table(target).sort_by("id")
    expected = SentenceTransformer(mean_pooled, device="cpu").encode(TEXTS[:3])
    assert np.abs(np.stack(table["embedding"].to_numpy()) - expected).max() < 1e-5

"""The shares of ranks: every text once, about as many tokens for each, and few passes."""

import glob
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.data import bags, corpus
from boom_ray.model import directory
from boom_ray.model.packed_layout import PackedLayout, chunk_by_tokens
from boom_ray.model.padded_layout import PaddedLayout
from boom_ray.recipe import Recipe
from boom_ray.train.bagging import make_job
from boom_ray.train.batch_loader import BatchLoader
from boom_ray.train.share import UNLIMITED, Counts, deal, share_chunks, sizes_of, split

RECIPES = sorted(
    glob.glob(os.path.join(os.path.dirname(__file__), "..", "..", "jobs", "recipes", "qwen3-*.yaml"))
)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=60), st.integers(1, 9))
def test_texts_are_dealt_once_and_evenly(sizes, num_ranks):
    texts = ["ä" * (size // 2) + "a" * (size % 2) for size in sizes]
    shares = [deal(sizes_of(texts), rank, num_ranks) for rank in range(num_ranks)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(texts)))
    totals = [sum(sizes[index] for index in share) for share in shares]
    assert max(totals) - min(totals) <= max(sizes)


@pytest.mark.parametrize("layout", [PaddedLayout("mean", 0, False), PackedLayout("mean", 0, False)])
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 300))
def test_all_ranks_have_equally_many_chunks_of_which_those_kept_fit(layout, lengths, num_ranks, chunk_tokens):
    lengths = np.array(lengths)
    shares = [np.arange(rank, len(lengths), num_ranks) for rank in range(num_ranks)]
    cut = [share_chunks(layout, lengths[share], chunk_tokens) for share in shares]
    chunks, counts = zip(*cut, strict=True)
    total = Counts.of_all(np.array(counts))
    for share, own in zip(shares, chunks, strict=True):
        equal = split(own, total.chunks)
        assert len(equal) == total.chunks
        assert sorted(np.concatenate(equal).tolist()) == list(range(len(share)))
        assert total.kept == 1 or sum(layout.chunk_sizes(lengths[share], equal[: total.kept])) <= chunk_tokens
    assert num_ranks > 1 or (total.kept == UNLIMITED) == (total.computed <= chunk_tokens)
    assert total.tokens == lengths.sum()


def test_counts_of_all_ranks_are_the_most_chunks_the_fewest_kept_and_sums():
    own = [Counts(2, UNLIMITED, 100, 110, 3, 7, 50), Counts(3, 1, 120, 120, 0, 2, 40)]
    assert Counts.of_all(np.array(own)) == Counts(3, 1, 220, 230, 3, 7, 50)


def texts_of(recipe: Recipe, random: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """Texts of a global batch and their tokens: 15 % and 35 % of the maximum length on average."""
    train = recipe.train
    means = np.repeat(
        [0.15 * train.query_max_length, 0.35 * train.passage_max_length],
        [train.batch_size, train.batch_size * train.group_size],
    )
    drawn = random.lognormal(np.log(means) - 0.18, 0.6)
    sizes = drawn * random.uniform(3.8, 5.2, len(drawn))  # bytes of a token, in one language
    return ["x" * int(size) for size in sizes], np.minimum(drawn, train.passage_max_length).astype(int) + 1


@pytest.mark.parametrize("num_ranks", [1, 8, 64])
@pytest.mark.parametrize("path", RECIPES, ids=map(os.path.basename, RECIPES))
def test_a_step_of_the_papers_recipes_is_one_to_three_chunks(path, num_ranks, monkeypatch, tmp_path):
    monkeypatch.setenv("BOOM_RAY_STORAGE", str(tmp_path))
    recipe, random = Recipe.load(path), np.random.default_rng(0)
    chunk_tokens = recipe.train.execution.chunk_tokens
    for _ in range(3):
        texts, lengths = texts_of(recipe, random)
        shares = [deal(sizes_of(texts), rank, num_ranks) for rank in range(num_ranks)]
        tokens = [lengths[share].sum() for share in shares]
        assert max(tokens) < 1.1 * np.mean(tokens), "ranks have about the same work"
        num_chunks = max(len(chunk_by_tokens(lengths[share], chunk_tokens)) for share in shares)
        assert num_chunks == 1 if num_ranks > 1 else num_chunks <= 3


def test_each_text_is_tokenized_by_one_rank(make_recipe, qwen3):
    recipe, num_ranks = make_recipe(qwen3), 3
    encoder = directory.load_encoder(qwen3, recipe.base_model)
    prepared = corpus.prepare(recipe.data, f"{recipe.root}/corpus", "c")
    drawn = bags.publish(prepared, recipe.bags, f"{recipe.root}/bags")
    job = make_job(recipe, 1, prepared, drawn, prepared.as_parent(), None)
    whole = BatchLoader(job, encoder).batch(3)
    tokenized: list[str] = []
    original = encoder.tokenize

    def recorded(texts, *arguments):
        tokenized.extend(texts)
        return original(texts, *arguments)

    encoder.tokenize = recorded
    shares = [BatchLoader(job, encoder, rank, num_ranks).batch(3) for rank in range(num_ranks)]
    assert sorted(tokenized) == sorted(whole.batch.texts) and len(set(tokenized)) == len(tokenized)
    for share in shares:
        assert share.batch.texts == whole.batch.texts
        assert share.tokens.lists() == [whole.tokens.lists()[index] for index in share.texts]
    total = Counts.of_all(np.array([share.counts for share in shares]))
    assert (total.tokens, total.truncated) == (whole.counts.tokens, whole.counts.truncated)
    assert total.tokens == len(whole.tokens.ids) > 0

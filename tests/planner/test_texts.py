"""Measured loads compared with the batches of training; overrides; and formatting of numbers."""

import numpy as np
import pytest

from boom_ray.data import bags, corpus
from boom_ray.errors import InputError
from boom_ray.model import directory
from boom_ray.planner.assumptions import Assumptions, duration, quantity
from boom_ray.planner.passes import SampledBatch, layout_of, step_passes
from boom_ray.planner.texts import BatchMix, TextSampler
from boom_ray.train.bagging import make_job
from boom_ray.train.batch_loader import BatchLoader
from boom_ray.train.share import Counts, sizes_of, split


@pytest.mark.parametrize("name", ["minilm", "qwen3"])
def test_measured_texts_are_those_of_training_and_are_cut_as_a_step_cuts_them(name, make_recipe, request):
    recipe = make_recipe(request.getfixturevalue(name), bags={"ratios": [100, 100]})
    encoder = directory.load_encoder(recipe.base_model.path, recipe.base_model)
    sampler = TextSampler(recipe, encoder.spec.max_length, encoder.tokenizer, Assumptions())
    prepared = corpus.prepare(recipe.data, f"{recipe.root}/corpus", "c")
    drawn = bags.publish(prepared, recipe.bags, f"{recipe.root}/bags")
    job = make_job(recipe, 0, prepared, drawn, prepared.as_parent(), None)
    loader = BatchLoader(job, encoder)
    batches = [loader.batch(step) for step in range(loader.num_steps)]
    for task in recipe.data.tasks:
        texts, own = sampler.of(task), [one for one in batches if one.batch.task == task.name]
        assert texts.measured
        assert texts.texts == pytest.approx(np.mean([len(one.tokens) for one in own]), rel=0.1)
        assert texts.tokens == pytest.approx(np.mean([len(one.tokens.ids) for one in own]), rel=0.1)
    whole = batches[0]
    sampled = SampledBatch(whole.tokens.lengths, sizes_of(whole.batch.texts))
    layout, sizes_in = layout_of(recipe.train), encoder.layout.chunk_sizes
    for num_ranks, chunk_tokens in ((1, 10**9), (1, 200), (3, 100), (40, 64)):
        loaders = [BatchLoader(job, encoder, rank, num_ranks) for rank in range(num_ranks)]
        for one in loaders:
            one.chunk_tokens = chunk_tokens
        shares = [one.batch(0) for one in loaders]
        counts = Counts.of_all(np.array([share.counts for share in shares]))
        passes = step_passes(sampled, layout, chunk_tokens, num_ranks)
        assert passes.num_chunks == counts.chunks
        assert passes.num_repeated == max(0, counts.chunks - counts.kept)
        every = [*range(num_ranks)] if num_ranks < 16 else np.linspace(0, num_ranks - 1, 16).astype(int)
        for rank, found in zip(every, passes.ranks, strict=True):
            chunks, lengths = split(shares[rank].chunks, counts.chunks), shares[rank].tokens.lengths
            assert found.all.tokens == sum(sizes_in(lengths, chunks))
            assert found.repeated.tokens == sum(sizes_in(lengths, chunks[counts.kept :]))


def test_a_mix_weighs_tasks_by_their_batches(make_recipe, minilm):
    recipe = make_recipe(minilm)
    fills = [{"data.query_fill": fill, "data.passage_fill": fill} for fill in (0.25, 0.5)]
    short, long = (TextSampler(recipe, 256, None, Assumptions(own)).assumed() for own in fills)
    mix = BatchMix.of({"short": short, "long": long}, {"short": 3, "long": 1})
    assert mix.tokens == 0.75 * short.tokens + 0.25 * long.tokens == 0.625 * long.tokens


def test_the_evaluation_is_counted_text_by_text(make_recipe, minilm, beir):
    recipe = make_recipe(minilm)
    encoder = directory.load_encoder(minilm)
    found = TextSampler(recipe, 256, encoder.tokenizer, Assumptions()).evaluation(recipe.evaluate)
    assert [load.texts for load in found] == [40, 40], "20 documents and 20 queries in each of two tasks"
    assert all(0 < load.tokens <= 32 * load.texts and load.length <= 32 for load in found)


def test_overridden_lengths_have_precedence_over_measured_ones(make_recipe, minilm):
    recipe = make_recipe(minilm)
    overrides = {"data.query_fill": 0.3, "data.passage_fill": 1.0}
    texts = TextSampler(recipe, 256, None, Assumptions(overrides)).of(recipe.data.tasks[0])
    (batch,) = texts.batches
    queries, passages = batch.lengths[:8], batch.lengths[8:]
    assert len(passages) == 8 * 3 and not texts.measured
    assert set(queries.tolist()) == {19, 20} and queries.sum() == round(8 * 0.3 * 64)
    assert set(passages.tolist()) == {32}


def test_assumptions_have_one_source_and_unknown_overrides_are_refused():
    assume = Assumptions({"a": 1.0, "typo": 3.0}, {"a": 5.0, "b": 6.0})
    assert [assume.take(name, 9.0, "s", "a guess") for name in "abc"] == [1, 6, 9]
    assert [one.source for one in assume.used.values()] == [
        "overridden",
        "calibrated",
        "a guess",
    ]
    with pytest.raises(InputError, match=r"typo: .*a, b, c"):
        assume.check()


def test_quantities_and_durations_choose_their_unit():
    assert [quantity(989e12, "FLOP/s"), quantity(1536, "B"), quantity(0.35, "")] == [
        "989 TFLOP/s",
        "1.54 kB",
        "0.35",
    ]
    assert [duration(45), duration(750), duration(3 * 3600), duration(5 * 86400)] == [
        "45 s",
        "12.5 min",
        "3 h",
        "5.0 days",
    ]

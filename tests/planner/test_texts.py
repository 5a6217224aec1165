"""Lengths as they are measured, against batches as training makes them; and numbers that are given."""

import numpy as np
import pytest

from boom_ray.data import bags, corpus
from boom_ray.errors import BoomError
from boom_ray.model import directory
from boom_ray.planner.assumptions import Assumptions, duration, parse, quantity
from boom_ray.planner.texts import Loads
from boom_ray.train.bagging import make_job
from boom_ray.train.batch_loader import BatchLoader
from boom_ray.train.step import share_chunks
from boom_ray.train.step_statistics import padding_fraction


@pytest.mark.parametrize("name", ["minilm", "qwen3"])
def test_a_measured_batch_is_like_those_that_training_feeds(name, make_recipe, request):
    recipe = make_recipe(request.getfixturevalue(name), bags={"ratios": [100, 100]})
    encoder = directory.load_encoder(recipe.base_model.path, recipe.base_model)
    loads = Loads(recipe, encoder.spec.max_length, encoder.tokenizer, Assumptions({}))
    prepared = corpus.prepare(recipe.data, f"{recipe.root}/corpus", "c")
    drawn = bags.publish(prepared, recipe.bags, f"{recipe.root}/bags")
    loader = BatchLoader(make_job(recipe, 0, prepared, drawn, prepared.as_parent(), None), encoder)
    batches = [loader.batch(step) for step in range(loader.num_steps)]
    for task in recipe.data.tasks:
        load, own = loads.of(task), [one for one in batches if one.batch.task == task.name]
        assert load.measured
        assert load.texts == pytest.approx(np.mean([len(one.token_ids) for one in own]), rel=0.1)
        assert load.tokens == pytest.approx(np.mean([one.lengths.sum() for one in own]), rel=0.1)
        chunk_tokens = recipe.train.execution.chunk_tokens
        padding = [padding_fraction(f.lengths, share_chunks(f.lengths, 1, chunk_tokens)[0]) for f in own]
        assert 1 - load.tokens / load.computed == pytest.approx(np.mean(padding), abs=0.03)


def test_the_evaluation_is_counted_text_by_text(make_recipe, minilm, beir):
    recipe = make_recipe(minilm)
    encoder = directory.load_encoder(minilm)
    found = Loads(recipe, 256, encoder.tokenizer, Assumptions({})).evaluation(recipe.evaluate)
    assert [load.texts for load in found] == [40, 40], "20 documents and 20 queries in each of two tasks"
    assert all(0 < load.tokens <= 32 * load.texts and load.length <= 32 for load in found)


def test_given_lengths_come_before_measured_ones(make_recipe, minilm):
    recipe = make_recipe(minilm)
    given = {"data.query_fill": 0.5, "data.passage_fill": 1.0, "data.padding": 0.0}
    load = Loads(recipe, 256, None, Assumptions(given)).of(recipe.data.tasks[0])
    assert (load.texts, load.tokens, load.computed) == (8 + 8 * 3, 8 * 16 + 24 * 32, 8 * 16 + 24 * 32)
    assert load.length == pytest.approx((8 * 16 * 16 + 24 * 32 * 32) / load.tokens) and not load.measured


def test_numbers_have_one_source_and_unknown_ones_are_refused():
    assume = Assumptions({"a": 1.0, "typo": 3.0}, {"a": 5.0, "b": 6.0})
    assert [assume.take(name, 9.0, "s", "a guess") for name in "abc"] == [1, 6, 9]
    assert [taken.source for taken in assume.taken.values()] == [
        "--assume",
        "measured by --calibrate",
        "a guess",
    ]
    with pytest.raises(BoomError, match=r"typo: this plan uses no such number; allowed: a, b, c"):
        assume.check()
    with pytest.raises(BoomError, match=r"--assume gpu.flops=fast: expected name=number"):
        parse(("gpu.flops=fast",))


def test_numbers_read_as_people_write_them():
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

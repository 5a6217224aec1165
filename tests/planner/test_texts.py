"""Measured loads compared with the batches of training; overrides; and formatting of numbers."""

import numpy as np
import pytest

from boom_ray.data import bags, corpus
from boom_ray.errors import InputError
from boom_ray.model import directory
from boom_ray.planner.assumptions import Assumptions, duration, quantity
from boom_ray.planner.texts import BatchLoads
from boom_ray.train.bagging import make_job
from boom_ray.train.batch_loader import BatchLoader


@pytest.mark.parametrize("name", ["minilm", "qwen3"])
def test_a_measured_load_is_that_of_training(name, make_recipe, request):
    recipe = make_recipe(request.getfixturevalue(name), bags={"ratios": [100, 100]})
    encoder = directory.load_encoder(recipe.base_model.path, recipe.base_model)
    loads = BatchLoads(recipe, encoder.spec.max_length, encoder.tokenizer, Assumptions())
    prepared = corpus.prepare(recipe.data, f"{recipe.root}/corpus", "c")
    drawn = bags.publish(prepared, recipe.bags, f"{recipe.root}/bags")
    loader = BatchLoader(make_job(recipe, 0, prepared, drawn, prepared.as_parent(), None), encoder)
    batches = [loader.batch(step) for step in range(loader.num_steps)]
    for task in recipe.data.tasks:
        load, own = loads.of(task), [one for one in batches if one.batch.task == task.name]
        assert load.measured
        assert load.texts == pytest.approx(np.mean([len(one.tokens) for one in own]), rel=0.1)
        assert load.tokens == pytest.approx(np.mean([len(one.tokens.ids) for one in own]), rel=0.1)
        computed = [one.counts.computed for one in own]
        assert load.computed == pytest.approx(np.mean(computed), rel=0.1)


def test_the_evaluation_is_counted_text_by_text(make_recipe, minilm, beir):
    recipe = make_recipe(minilm)
    encoder = directory.load_encoder(minilm)
    found = BatchLoads(recipe, 256, encoder.tokenizer, Assumptions()).evaluation(recipe.evaluate)
    assert [load.texts for load in found] == [40, 40], "20 documents and 20 queries in each of two tasks"
    assert all(0 < load.tokens <= 32 * load.texts and load.length <= 32 for load in found)


def test_overridden_lengths_have_precedence_over_measured_ones(make_recipe, minilm):
    recipe = make_recipe(minilm)
    overrides = {"data.query_fill": 0.5, "data.passage_fill": 1.0, "data.padding": 0.0}
    load = BatchLoads(recipe, 256, None, Assumptions(overrides)).of(recipe.data.tasks[0])
    assert (load.texts, load.tokens, load.computed) == (8 + 8 * 3, 8 * 32 + 24 * 32, 8 * 32 + 24 * 32)
    assert load.length == pytest.approx((8 * 32 * 32 + 24 * 32 * 32) / load.tokens) and not load.measured


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

"""Averages of weights: of the right steps, with ZeRO 1 and 3; `test_resume` resumes them."""

from typing import Any

import numpy as np
import pytest
import torch

from boom_ray.recipe import Average
from boom_ray.train.average import averaged_steps
from boom_ray.train.bag_job import BagJob
from tests.train.test_differences import Arrays, on_ranks, with_training
from tests.train.test_exactness import with_execution

pytestmark = pytest.mark.usefixtures("ray_cluster")

NUM_STEPS = 5


@pytest.mark.parametrize(
    ("average", "num_steps", "expected"),
    [
        (None, 9, {}),
        (Average(last=3, every_steps=50), 120, {20: 1 / 3, 70: 1 / 3, 120: 1 / 3}),
        (Average(last=3, every_steps=50), 100, {50: 1 / 2, 100: 1 / 2}),
        (Average(last=3, every_steps=50), 7, {7: 1}),
        (Average(decay=0.5, every_steps=2), NUM_STEPS, {1: 1 / 7, 3: 2 / 7, 5: 4 / 7}),
    ],
)
def test_steps_are_counted_back_from_the_last_one(average, num_steps, expected):
    found = averaged_steps(average, num_steps)
    assert found == pytest.approx(expected) and list(found) == list(expected)


def arrays(weights: dict[str, torch.Tensor]) -> Arrays:
    return {name: weight.numpy() for name, weight in weights.items()}


def trained(job: BagJob) -> tuple[Arrays, dict[int, Arrays]]:
    """What a bag publishes, and its weights after every step."""
    from boom_ray.train.master_weights import trained_weights
    from boom_ray.train.worker import BagTraining

    training = BagTraining(job)
    by_step: dict[int, Arrays] = {}
    for step, batch in training.loader.from_step(0):
        training.steps.run(step, batch)
        training.average.after_step(step + 1)
        weights = trained_weights(training.engine, training.encoder.transformer, torch.float32)
        by_step[step + 1] = arrays(weights)
    published = arrays(training.weights(torch.float32))
    training.engine.destroy()
    return published, by_step


def test_the_average_is_that_of_the_weights_of_its_steps(make_recipe, bert):
    recipe = make_recipe(bert)
    settings: dict[str, Any] = {"max_steps": NUM_STEPS, "learning_rate": 1e-3}
    last, decay = Average(last=2, every_steps=2), Average(decay=0.5, every_steps=2)
    recipes = [
        with_execution(with_training(recipe, "last", average=last, **settings), zero_stage=1),
        with_execution(with_training(recipe, "decay", average=decay, **settings), zero_stage=3),
    ]
    shares = [{3: 1 / 2, 5: 1 / 2}, {1: 1 / 7, 3: 2 / 7, 5: 4 / 7}]
    results = on_ranks(trained, recipes, 2)
    for (published, by_step), steps in zip(results, shares, strict=True):
        for name, final in by_step[NUM_STEPS].items():
            expected = sum(share * by_step[step][name].astype(float) for step, share in steps.items())
            assert not np.allclose(final, expected, rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(published[name], expected, rtol=3e-7, atol=1e-9)
        assert published.keys() == by_step[NUM_STEPS].keys()

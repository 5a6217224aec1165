"""The trained weights are independent of the number of ranks, the ZeRO stage and GradCache."""

import itertools
from typing import Any

import numpy as np
import pytest
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from boom_ray import storage
from boom_ray.data import bags, corpus
from boom_ray.model import directory
from boom_ray.recipe import Recipe
from boom_ray.train.bagging import make_job

pytestmark = pytest.mark.usefixtures("ray_cluster")

Weights = dict[str, np.ndarray]
Variant = tuple[int, bool, int]  # ZeRO stage, GradCache, chunk tokens
STEPS = 20


def with_execution(recipe: Recipe, **settings: Any) -> Recipe:
    execution = recipe.train.execution.model_copy(update=settings)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"execution": execution})})


def weights_after(config: dict[str, Any]) -> dict[Variant, Weights]:
    """Full weights after all steps of every variant, in one process group."""
    from dataclasses import replace

    from boom_ray.train.engine import full_weights
    from boom_ray.train.worker import BagTraining

    results = {}
    for variant in config["variants"]:
        stage, grad_cache, chunk_tokens = variant
        recipe = with_execution(
            config["job"].recipe, zero_stage=stage, grad_cache=grad_cache, chunk_tokens=chunk_tokens
        )
        training = BagTraining(replace(config["job"], recipe=recipe))
        for step, batch in training.loader.from_step(0):
            training.steps.run(step, batch)
        weights = full_weights(training.engine, training.encoder.transformer)
        results[variant] = {name: weight.numpy() for name, weight in weights.items()}
        training.engine.destroy()
    return results


def train(recipe: Recipe, num_ranks: int, variants: list[Variant]) -> dict[Variant, Weights]:
    prepared = corpus.prepare(recipe.data, storage.join(recipe.root, "corpus"), recipe.name)
    drawn = bags.publish(prepared, recipe.bags, storage.join(recipe.root, "bags"))
    trainer = TorchTrainer(
        weights_after,
        train_loop_config={
            "job": make_job(recipe, 1, prepared, drawn, directory.identify(recipe.base_model.path), None),
            "variants": variants,
        },
        scaling_config=ScalingConfig(num_workers=num_ranks, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=storage.join(recipe.root, "ray_train")),
    )
    return trainer.fit().return_value


def difference(weights: Weights, expected: Weights) -> float:
    """Relative difference over all weights together."""
    assert weights.keys() == expected.keys()
    square = sum(np.square(weights[name].astype(float) - expected[name]).sum() for name in expected)
    return float(np.sqrt(square / sum(np.square(array.astype(float)).sum() for array in expected.values())))


@pytest.mark.slow
def test_weights_are_equal_for_all_ranks_stages_and_grad_cache(make_recipe, qwen3, capsys):
    recipe = make_recipe(qwen3)
    recipe = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"epochs": 9, "max_steps": STEPS})}
    )
    variants = [(stage, cached, 256 if cached else 4096) for stage in range(4) for cached in (False, True)]
    results = {ranks: train(recipe, ranks, variants) for ranks in (1, 2, 4)}
    expected = results[1][(0, False, 4096)]
    with capsys.disabled():
        print(f"\n{STEPS} steps: relative difference of all weights to one rank, ZeRO 0, no GradCache")
        print("ranks  GradCache  " + "  ".join(f"ZeRO {stage} " for stage in range(4)))
        for ranks, cached in itertools.product((1, 2, 4), (False, True)):
            row = [difference(results[ranks][v], expected) for v in variants if v[1] == cached]
            print(f"{ranks:5}  {cached!s:9}  " + "  ".join(f"{value:.1e}" for value in row))
    for variants_of_ranks in results.values():
        for weights in variants_of_ranks.values():
            assert difference(weights, expected) < 1e-5


def test_two_ranks_train_the_weights_of_one(make_recipe, qwen3):
    recipe = make_recipe(qwen3)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 6})})
    (expected,) = train(recipe, 1, [(0, False, 4096)]).values()
    for variant, weights in train(recipe, 2, [(1, True, 128), (3, False, 4096)]).items():
        assert difference(weights, expected) < 1e-5, variant
    untrained = directory.load_encoder(qwen3, recipe.base_model).transformer.state_dict()
    untrained = {name: weight.numpy() for name, weight in untrained.items()}
    assert difference(untrained, expected) > 1e-4, "training changes the weights"

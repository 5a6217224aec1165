"""The trained weights are independent of the number of ranks, the ZeRO stage and GradCache."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from boom_ray import storage
from boom_ray.data import bags, corpus
from boom_ray.model import directory
from boom_ray.recipe import Recipe
from boom_ray.train.bag_job import BagJob
from boom_ray.train.bagging import make_job

pytestmark = pytest.mark.usefixtures("ray_cluster")

Weights = dict[str, np.ndarray]
Gradients = tuple[float, dict[str, np.ndarray]]  # of the first batch, and its loss
Variant = tuple[int, bool, int]  # ZeRO stage, GradCache, chunk tokens
STEPS = 20


def with_execution(recipe: Recipe, **settings: Any) -> Recipe:
    execution = recipe.train.execution.model_copy(update=settings)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"execution": execution})})


def start(job: BagJob, variant: Variant) -> Any:
    """A `BagTraining` of one variant, on a rank."""
    from boom_ray.train.worker import BagTraining

    stage, grad_cache, chunk_tokens = variant
    recipe = with_execution(job.recipe, zero_stage=stage, grad_cache=grad_cache, chunk_tokens=chunk_tokens)
    return BagTraining(replace(job, recipe=recipe))


def first_gradients(job: BagJob, variant: Variant) -> Gradients:
    """Loss and gradients of the first global batch. Runs on every rank."""
    from deepspeed.utils import safe_get_full_grad

    training = start(job, variant)
    loss, _ = training.steps.accumulate(training.loader.batch(0))
    trained = [item for item in training.encoder.named_parameters() if item[1].requires_grad]
    gradients = {name: safe_get_full_grad(parameter).clone().numpy() for name, parameter in trained}
    training.engine.destroy()
    return loss, gradients


def train_variants(config: dict[str, Any]) -> tuple[dict[Variant, Weights], Gradients | None]:
    """The weights after all steps of every variant, and gradients of one, in one process group."""
    from boom_ray.train.master_weights import trained_weights

    job, results = config["job"], {}
    for variant in config["variants"]:
        training = start(job, variant)
        for step, batch in training.loader.from_step(0):
            training.steps.run(step, batch)
        weights = trained_weights(training.engine, training.encoder.transformer, torch.float32)
        results[variant] = {name: weight.numpy() for name, weight in weights.items()}
        training.engine.destroy()
    gradients_of = config["gradients_of"]
    return results, gradients_of and first_gradients(job, gradients_of)


def train(
    recipe: Recipe, num_ranks: int, variants: list[Variant], gradients_of: Variant | None = None
) -> tuple[dict[Variant, Weights], Any]:
    prepared = corpus.prepare(recipe.data, storage.join(recipe.root, "corpus"), recipe.name)
    drawn = bags.publish(prepared, recipe.bags, storage.join(recipe.root, "bags"))
    trainer = TorchTrainer(
        train_variants,
        train_loop_config={
            "job": make_job(recipe, 1, prepared, drawn, directory.identify(recipe.base_model.path), None),
            "variants": variants,
            "gradients_of": gradients_of,
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
    found = {ranks: train(recipe, ranks, variants)[0] for ranks in (1, 2, 4)}
    expected = found[1][(0, False, 4096)]
    with capsys.disabled():
        print(f"\n{STEPS} steps: relative difference of all weights to one rank, ZeRO 0, no GradCache")
        print("ranks  GradCache  " + "  ".join(f"ZeRO {stage} " for stage in range(4)))
        for ranks, cached in itertools.product((1, 2, 4), (False, True)):
            row = [difference(found[ranks][v], expected) for v in variants if v[1] == cached]
            print(f"{ranks:5}  {cached!s:9}  " + "  ".join(f"{value:.1e}" for value in row))
    for variants_of_ranks in found.values():
        for weights in variants_of_ranks.values():
            assert difference(weights, expected) < 1e-5


def test_two_ranks_compute_the_gradients_and_weights_of_one(make_recipe, qwen3):
    recipe = make_recipe(qwen3)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 6})})
    whole, sharded = (0, False, 4096), (1, False, 4096)
    weights_of_one, (loss, gradients) = train(recipe, 1, [whole, sharded], gradients_of=sharded)
    cached = (1, True, 128)
    weights_of_two, (loss_of_two, gradients_of_two) = train(
        recipe, 2, [cached, (3, False, 4096)], gradients_of=cached
    )
    assert loss_of_two == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == gradients_of_two.keys() and len(gradients) > 10
    for name in gradients:
        assert difference({name: gradients_of_two[name]}, {name: gradients[name]}) < 1e-5, name
    expected = weights_of_one[whole]
    for variant, weights in [*weights_of_one.items(), *weights_of_two.items()]:
        assert difference(weights, expected) < 1e-5, variant
    untrained = directory.load_encoder(qwen3, recipe.base_model).transformer.state_dict()
    untrained = {name: weight.numpy() for name, weight in untrained.items()}
    assert difference(untrained, expected) > 1e-4, "training changes the weights"

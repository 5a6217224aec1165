"""The trained weights are independent of the number of ranks, the ZeRO stage and the chunks."""

import itertools
from collections.abc import Sequence
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
Variant = tuple[int, int]  # ZeRO stage, chunk tokens
ALL_KEPT, MOST_AGAIN = 4096, 128  # chunk tokens: a step of the tiny corpus has some 1,200
STEPS = 20
BF16_UNIT = 2**-9  # largest relative error of rounding to bfloat16


def with_execution(recipe: Recipe, **settings: Any) -> Recipe:
    execution = recipe.train.execution.model_copy(update=settings)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"execution": execution})})


def start(job: BagJob, variant: Variant) -> Any:
    """A `BagTraining` of one variant, on a rank."""
    from boom_ray.train.worker import BagTraining

    stage, chunk_tokens = variant
    recipe = with_execution(job.recipe, zero_stage=stage, chunk_tokens=chunk_tokens)
    return BagTraining(replace(job, recipe=recipe))


def first_gradients(job: BagJob, variant: Variant) -> Gradients:
    """Loss and gradients of the first global batch. Runs on every rank."""
    from deepspeed.utils import safe_get_full_grad

    training = start(job, variant)
    loss, *_ = training.steps.accumulate(training.loader.batch(0))
    trained = [item for item in training.encoder.named_parameters() if item[1].requires_grad]
    gradients = {name: safe_get_full_grad(parameter).clone().numpy() for name, parameter in trained}
    training.engine.destroy()
    return loss, gradients


def train_variants(config: dict[str, Any]) -> tuple[dict[Variant, Weights], list[Gradients]]:
    """The weights after all steps of every variant, and gradients of others, in one process group."""
    from boom_ray.train.master_weights import trained_weights

    job, results = config["job"], {}
    for variant in config["variants"]:
        training = start(job, variant)
        for step, batch in training.loader.from_step(0):
            training.steps.run(step, batch)
        weights = trained_weights(training.engine, training.encoder.transformer, torch.float32)
        results[variant] = {name: weight.numpy() for name, weight in weights.items()}
        training.engine.destroy()
    return results, [first_gradients(job, variant) for variant in config["gradients_of"]]


def train(
    recipe: Recipe, num_ranks: int, variants: list[Variant], gradients_of: Sequence[Variant] = ()
) -> tuple[dict[Variant, Weights], list[Gradients]]:
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
def test_weights_are_equal_for_all_ranks_stages_and_chunks(make_recipe, qwen3, capsys):
    recipe = make_recipe(qwen3)
    recipe = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"epochs": 9, "max_steps": STEPS})}
    )
    variants = [(stage, tokens) for stage in range(4) for tokens in (ALL_KEPT, MOST_AGAIN)]
    found = {ranks: train(recipe, ranks, variants)[0] for ranks in (1, 2, 4)}
    expected = found[1][(0, ALL_KEPT)]
    with capsys.disabled():
        print(f"\n{STEPS} steps: relative difference of all weights to one rank, ZeRO 0, chunks of 4,096")
        print("ranks  chunk tokens  " + "  ".join(f"ZeRO {stage} " for stage in range(4)))
        for ranks, tokens in itertools.product((1, 2, 4), (ALL_KEPT, MOST_AGAIN)):
            row = [difference(found[ranks][v], expected) for v in variants if v[1] == tokens]
            print(f"{ranks:5}  {tokens:12,}  " + "  ".join(f"{value:.1e}" for value in row))
    for variants_of_ranks in found.values():
        for weights in variants_of_ranks.values():
            assert difference(weights, expected) < 1e-5


def test_two_ranks_compute_the_gradients_and_weights_of_one(make_recipe, qwen3):
    recipe = make_recipe(qwen3)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 6})})
    whole, sharded = (0, ALL_KEPT), (1, ALL_KEPT)
    weights_of_one, [(loss, gradients)] = train(recipe, 1, [whole, sharded], gradients_of=[sharded])
    cut = (1, MOST_AGAIN)
    weights_of_two, [(loss_of_two, gradients_of_two)] = train(
        recipe, 2, [cut, (2, MOST_AGAIN), (3, ALL_KEPT)], gradients_of=[cut]
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


def test_gradients_in_bf16_are_independent_of_the_number_of_chunks(make_recipe, qwen3):
    """A chunk is up to one text. Summed in bf16, the gradients of so many differ by 6 to 7 units."""
    recipe, update = make_recipe(qwen3), {"precision": "bf16", "batch_size": 32, "temperature": 0.05}
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=update)})
    variants = [(1, ALL_KEPT), (1, MOST_AGAIN), (1, 1), (2, 1)]
    _, [(loss, gradients), *others] = train(recipe, 1, [], gradients_of=variants)
    matrices = {name for name in gradients if name.endswith("proj.weight")}
    for variant, (loss_of_other, gradients_of_other) in zip(variants[1:], others, strict=True):
        assert loss_of_other == pytest.approx(loss, rel=BF16_UNIT)
        found, expected = ({name: of[name] for name in matrices} for of in (gradients_of_other, gradients))
        # Vectors differ by 1.4 units between forward passes of different shapes, gradients by twice that.
        assert difference(found, expected) < 4 * BF16_UNIT, variant

"""The differences to the base model that training makes are those that are published."""

import os
from typing import Any

import numpy as np
import pytest
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file
from torch import Tensor

from boom_ray import storage
from boom_ray.data import bags, corpus
from boom_ray.model import directory
from boom_ray.recipe import Lora, Recipe
from boom_ray.train.bag_job import BagJob
from boom_ray.train.bagging import make_job
from tests.train.test_exactness import with_execution

pytestmark = pytest.mark.usefixtures("ray_cluster")

Weights = dict[str, Tensor]
Arrays = dict[str, np.ndarray]
LORA = Lora(rank=3, alpha=6, targets=["query", "dense"])


def on_ranks(work: Any, recipes: list[Recipe], num_ranks: int) -> Any:
    """The results of a function on rank 0, for the job of the second bag of each recipe."""
    jobs = []
    for recipe in recipes:
        prepared = corpus.prepare(recipe.data, storage.join(recipe.root, "corpus"), recipe.name)
        drawn = bags.publish(prepared, recipe.bags, storage.join(recipe.root, "bags"))
        jobs.append(make_job(recipe, 1, prepared, drawn, directory.identify(recipe.base_model.path), None))
    trainer = TorchTrainer(
        lambda config: [work(job) for job in config["jobs"]],
        train_loop_config={"jobs": jobs},
        scaling_config=ScalingConfig(num_workers=num_ranks, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=storage.join(recipes[0].root, "ray_train")),
    )
    return trainer.fit().return_value


def with_training(recipe: Recipe, name: str, **settings: Any) -> Recipe:
    train = recipe.train.model_copy(update={"precision": "bf16", **settings})
    return recipe.model_copy(update={"name": name, "train": train})


def first_weights(job: BagJob) -> Arrays:
    """The master weights before the first step."""
    from boom_ray.train.master_weights import trained_weights
    from boom_ray.train.worker import BagTraining

    training = BagTraining(job)
    weights = trained_weights(training.engine, training.encoder.transformer, torch.float32)
    training.engine.destroy()
    return {name: weight.numpy() for name, weight in weights.items()}


@pytest.mark.slow
def test_training_starts_from_the_weights_of_the_base_model_however_they_are_partitioned(make_recipe, bert):
    recipe = with_training(make_recipe(bert), "first")
    stages = [with_execution(recipe, zero_stage=stage) for stage in (1, 2, 3)]
    base = load_file(os.path.join(bert, "model.safetensors"))
    assert not torch.equal(base["embeddings.word_embeddings.weight"].bfloat16().float(),
                           base["embeddings.word_embeddings.weight"])  # fmt: skip
    for weights in on_ranks(first_weights, stages, 3):  # three ranks: no size is a multiple of it
        assert weights.keys() == {name for name in base if not name.startswith("pooler.")}
        assert all(np.array_equal(weight, base[name].numpy()) for name, weight in weights.items())


def followed(training: Any, masters: Weights) -> Arrays:
    """Train to the end, while torch's AdamW updates `masters` in float32 with the same gradients."""
    from deepspeed.utils import safe_get_full_grad

    from boom_ray.train.engine import create_optimizer, decay, optimizer_step
    from boom_ray.train.partitions import trainable

    train, num_steps = training.train, training.loader.num_steps
    model = torch.nn.ParameterList(masters.values())
    optimizer = create_optimizer(model, train)
    for step, batch in training.loader.from_step(0):
        training.steps.accumulate(batch)
        for master, parameter in zip(model, trainable(training.encoder.transformer).values(), strict=True):
            master.grad = safe_get_full_grad(parameter).float().clone()
        torch.nn.utils.clip_grad_norm_(model, train.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate * decay(step, num_steps, train.warmup_ratio)
        optimizer.step()
        optimizer_step(training.engine)
    return {name: master.detach().numpy() for name, master in zip(masters, model, strict=True)}


def published(job: BagJob) -> Arrays:
    """Train a bag, save it as it is published, and return the weights of the reference."""
    from boom_ray.train.export import save_model
    from boom_ray.train.master_weights import trained_weights
    from boom_ray.train.worker import BagTraining

    training = BagTraining(job)
    start = trained_weights(training.engine, training.encoder.transformer, torch.float32)
    expected = followed(training, start)
    weights = trained_weights(training.engine, training.encoder.transformer, torch.float32)
    save_model(job.recipe, training.encoder, weights, job.target)
    training.engine.destroy()
    return expected


def cosine(found: Weights, expected: Weights) -> float:
    """Cosine over all tensors together."""
    one, other = (torch.cat([d[name].double().flatten() for name in expected]) for d in (found, expected))
    return float(one @ other / one.norm() / other.norm())


def test_differences_of_bf16_training_are_published_as_they_are(make_recipe, bert, capsys):
    whole = with_training(make_recipe(bert), "whole", max_steps=4)
    adapted = with_training(make_recipe(bert), "adapted", max_steps=4, lora=LORA)
    references = on_ranks(published, [whole, adapted], 1)
    base = load_file(os.path.join(bert, "model.safetensors"))
    ends = (".lora_A.default.weight", ".lora_B.default.weight")
    layers = {name.removesuffix(ends[0]) for name in references[1] if name.endswith(ends[0])}
    products = {
        f"{name}.weight": 2 * references[1][name + ends[1]] @ references[1][name + ends[0]] for name in layers
    }
    expected = (
        {name: torch.tensor(array) - base[name] for name, array in references[0].items()},
        {name: torch.tensor(product) for name, product in products.items()},
    )
    for recipe, true in zip((whole, adapted), expected, strict=True):
        weights = directory.load_encoder(f"{recipe.root}/models/bag-2").transformer.state_dict()
        assert weights.keys() == base.keys()
        found = {name: weights[name] - base[name] for name in base}
        rounded = {name: weights[name].bfloat16().float() - base[name].bfloat16().float() for name in base}
        with capsys.disabled():
            print(f"\n{recipe.name}: cosine of true to published differences {cosine(found, true):.6f}, "
                  f"if rounded to bf16 {cosine(rounded, true):.3f}", end="")  # fmt: skip
        assert cosine(found, true) > 0.9999 > cosine(rounded, true)
        assert not any(found[name].any() for name in base.keys() - true.keys())
        if recipe is whole:
            norms = [name for name in true if "LayerNorm.weight" in name]
            assert all((found[name] != 0).float().mean() > 0.9 for name in norms)
            assert all((rounded[name] != 0).float().mean() < 0.1 for name in norms), "an error in some merges"
    size = os.path.getsize(f"{adapted.root}/models/bag-2/adapter_model.safetensors")
    assert size < os.path.getsize(f"{bert}/model.safetensors") / 60

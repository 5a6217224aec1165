"""Under Ray Train and DeepSpeed, the loss and gradient of a batch are independent of the number of ranks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from boom_ray import storage
from boom_ray.data import bags, corpus
from boom_ray.model import directory
from boom_ray.train.bagging import make_job

pytestmark = pytest.mark.usefixtures("ray_cluster")


def first_gradients(config: dict[str, Any]) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients of the first global batch."""
    from deepspeed.utils import safe_get_full_grad

    from boom_ray.train.worker import BagTraining

    training = BagTraining(config["job"])
    loss, _ = training.steps.accumulate(training.loader.batch(0))
    trained = [item for item in training.encoder.named_parameters() if item[1].requires_grad]
    return loss, {name: safe_get_full_grad(parameter).numpy() for name, parameter in trained}


def measure(recipe, num_ranks: int, **execution: Any) -> tuple[float, dict[str, np.ndarray]]:
    settings = recipe.train.execution.model_copy(update={"num_workers": num_ranks, **execution})
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"execution": settings})})
    prepared = corpus.prepare(recipe.data, storage.join(recipe.root, "corpus"), recipe.name)
    drawn = bags.publish(prepared, recipe.bags, storage.join(recipe.root, "bags"))
    job = make_job(recipe, 1, prepared, drawn, directory.identify(recipe.base_model.path), None)
    trainer = TorchTrainer(
        first_gradients,
        train_loop_config={"job": replace(job, recipe=recipe)},
        scaling_config=ScalingConfig(num_workers=num_ranks, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=storage.join(recipe.root, "ray_train")),
    )
    return trainer.fit().return_value


def test_one_and_two_ranks_agree(make_recipe, qwen3):
    recipe = make_recipe(qwen3)
    loss, gradients = measure(recipe, 1)
    loss_of_two, gradients_of_two = measure(recipe, 2, chunk_tokens=128, grad_cache=True)
    assert loss_of_two == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == gradients_of_two.keys() and len(gradients) > 10
    for name, gradient in gradients.items():
        difference = np.linalg.norm(gradients_of_two[name] - gradient) / np.linalg.norm(gradient)
        assert difference < 1e-5, name

"""The trained model of a bag as an artifact."""

import os
import time

from torch import Tensor

from boom_ray import storage
from boom_ray.artifacts import ModelRecord, staging
from boom_ray.artifacts.contents import ModelConfig, ModelMetrics, TrainingConfig
from boom_ray.artifacts.record import CARD
from boom_ray.model import card, directory
from boom_ray.model.encoder import Encoder
from boom_ray.train.bag_job import BagJob
from boom_ray.train.training_state import TrainingState


def write_model(
    job: BagJob,
    encoder: Encoder,
    weights: dict[str, Tensor],
    state: TrainingState,
    stage: staging.Stage,
) -> ModelRecord:
    """Write the model directory of a bag into a stage, and commit it.

    Args:
        weights: Full weights with the names of the base model.
    """
    recipe = job.recipe
    base = storage.local_directory(recipe.base_model.path)
    prompts = directory.prompts_of(recipe.data)
    max_length = recipe.base_model.max_length or min(
        encoder.spec.max_length, max(recipe.train.query_max_length, recipe.train.passage_max_length)
    )
    directory.save(encoder, stage.local, base, prompts, max_length, weights, recipe.train.matryoshka)
    training = TrainingConfig(ratio=recipe.bags.ratios[job.index], settings=recipe.train)
    record = ModelRecord(
        name=recipe.name,
        version=job.name,
        fingerprint=job.fingerprint,
        config=ModelConfig(rows=job.rows, training=training),
        seed=recipe.train.seed,
        parents=job.parents,
        metrics=ModelMetrics(training=state.metrics()),
        times={"train": (state.started, time.time())},
        job=job.submission_id,
    )
    dimension = encoder.dimension
    text = card.render(record, directory.read_spec(stage.local), dimension, directory.license_of(base))
    with open(os.path.join(stage.local, CARD), "w", encoding="utf-8") as file:
        file.write(text)
    return stage.commit(record)

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
from boom_ray.model.spec import EncoderSpec
from boom_ray.recipe import Recipe
from boom_ray.train.bag_job import BagJob
from boom_ray.train.training_state import TrainingState


def published_length(recipe: Recipe, spec: EncoderSpec) -> int:
    """Longest input of a trained model in tokens: that of the recipe, or the longest it was trained on.

    Args:
        spec: That of the base model.
    """
    trained = max(recipe.train.query_max_length, recipe.train.passage_max_length)
    return recipe.base_model.max_length or min(spec.max_length, trained)


def save_model(recipe: Recipe, encoder: Encoder, weights: dict[str, Tensor], target: str) -> None:
    """Write all files of a trained model except the card and the record to a local directory.

    Args:
        weights: Full weights with the names of the base model.
    """
    base = storage.local_directory(recipe.base_model.path)
    prompts = directory.prompts_of(recipe.data, encoder.spec)
    length = published_length(recipe, encoder.spec)
    directory.save(encoder, target, base, prompts, length, weights, recipe.train.matryoshka)


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
    save_model(recipe, encoder, weights, stage.local)
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

"""The trained model of a bag as an artifact."""

import os
import time

import torch
from torch import Tensor, nn

from boom_ray import storage
from boom_ray.artifacts import ModelRecord, staging
from boom_ray.artifacts.contents import ModelConfig, ModelMetrics, TrainingConfig
from boom_ray.artifacts.record import CARD
from boom_ray.artifacts.tensors import NAMES, read_places
from boom_ray.model import card, directory
from boom_ray.model.encoder import DTYPES, Encoder
from boom_ray.model.spec import EncoderSpec
from boom_ray.model.transformer import load_transformer
from boom_ray.recipe import Recipe
from boom_ray.train import lora
from boom_ray.train.average import averaged_steps
from boom_ray.train.bag_job import BagJob
from boom_ray.train.training_state import TrainingState


def published_length(recipe: Recipe, spec: EncoderSpec) -> int:
    """Longest input of a trained model in tokens: that of the recipe, or the longest it was trained on.

    Args:
        spec: That of the base model.
    """
    trained = max(recipe.train.query_max_length, recipe.train.passage_max_length)
    return recipe.base_model.max_length or min(spec.max_length, trained)


def is_rounded(recipe: Recipe) -> bool:
    """Whether training starts from weights that its precision has rounded from those of the base model."""
    if recipe.train.lora or recipe.train.precision == "fp32":
        return False
    own = NAMES[str(DTYPES[recipe.train.precision]).removeprefix("torch.")]
    places = read_places(storage.local_directory(recipe.base_model.path)).values()
    return any(place.is_floating and place.dtype != own for place in places)


def base_weights(recipe: Recipe) -> dict[str, Tensor]:
    """The weights of the base model in float32, and its buffers, by name."""
    base = storage.local_directory(recipe.base_model.path)
    return load_transformer(base, torch.float32, "auto").state_dict()


def save_model(recipe: Recipe, encoder: Encoder, trained: dict[str, Tensor], target: str) -> None:
    """Write all files of a trained model except the card and the record to a local directory.

    Args:
        trained: The weights that were trained, on the CPU; those of the adapters if there are any.
    """
    base = storage.local_directory(recipe.base_model.path)
    prompts = directory.prompts_of(recipe.data, encoder.spec)
    length = published_length(recipe, encoder.spec)
    weights = None
    if recipe.train.lora:
        lora.save(trained, recipe.train.lora, recipe.base_model.path, target)
    else:
        weights = _completed(recipe, encoder.transformer, trained)
    directory.save(encoder, target, base, prompts, length, weights, recipe.train.matryoshka)


def _completed(recipe: Recipe, transformer: nn.Module, trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """All weights of a model: those that are not trained, such as a pooler, are those of the base model."""
    frozen = {name for name, parameter in transformer.named_parameters() if not parameter.requires_grad}
    shared = {name for name, _ in transformer.named_parameters(remove_duplicate=False)}
    missing = frozen | (transformer.state_dict().keys() - shared)
    if not missing:
        return trained
    base, dtype = base_weights(recipe), DTYPES[recipe.train.save_dtype]
    kept = {name: base[name] for name in sorted(missing)}
    return trained | {name: t.to(dtype) if t.is_floating_point() else t for name, t in kept.items()}


def write_model(
    job: BagJob,
    encoder: Encoder,
    trained: dict[str, Tensor],
    state: TrainingState,
    stage: staging.Stage,
) -> ModelRecord:
    """Write the model directory of a bag into a stage, and commit it.

    Args:
        trained: The weights that were trained, on the CPU.
    """
    recipe = job.recipe
    base = storage.local_directory(recipe.base_model.path)
    save_model(recipe, encoder, trained, stage.local)
    training = TrainingConfig(
        bag=recipe.bags.ratios[job.index],
        settings=recipe.train,
        averaged=list(averaged_steps(recipe.train.average, job.steps)),
    )
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

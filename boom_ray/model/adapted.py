"""The transformer of a model directory, where an adapter stands for its base model and its updates."""

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from boom_ray import storage
from boom_ray.artifacts.tensors import TensorPlace
from boom_ray.errors import InputError
from boom_ray.model import adapter
from boom_ray.model.tensor_names import plain_names
from boom_ray.model.transformer import load_transformer
from boom_ray.recipe.execution import Attention


def load_adapted(directory: str, dtype: torch.dtype, attention: Attention) -> PreTrainedModel:
    """Load a transformer as `load_transformer` does, or that of an adapter's base model with its updates.

    An updated weight is W + scale * B A, computed in float32 from the stored W and rounded once.

    Raises:
        InputError: if the directory cannot be loaded, or it is an adapter whose base model is not found, or
            has other weights.
    """
    if not adapter.is_adapter(directory):
        return load_transformer(directory, dtype, attention)
    config = adapter.read_config(directory)
    base = storage.local_directory(adapter.base_of(directory, config))
    found = adapter.read(directory, config, base)
    transformer = load_transformer(base, dtype, attention)
    parameters = dict(transformer.named_parameters())
    own = dict(zip(plain_names(parameters), parameters.values(), strict=True))
    plain = dict(zip(found.places, plain_names(found.places), strict=True))
    for name, low in found.updates.items():
        if plain[name] not in own:
            raise InputError(
                f"{directory}: adapts {plain[name]}, which {type(transformer).__name__} does not have. Merge "
                "it with its base model, or choose another adapter"
            )
        product = _read(low.b).float() @ _read(low.a).float()
        update = low.scale * (product.T if low.transposed else product)
        own[plain[name]].data.copy_(_read(found.places[name]).float() + update)
    return transformer


def _read(place: TensorPlace) -> Tensor:
    with safe_open(place.uri, "pt") as file:
        return file.get_tensor(place.name)

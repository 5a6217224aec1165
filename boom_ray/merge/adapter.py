"""LoRA adapters as models: the tensors of their base model, with low-rank updates added as they are read."""

import json
import math
from typing import Any

from boom_ray import storage
from boom_ray.artifacts.tensors import TensorPlace, read_header, read_places
from boom_ray.errors import InputError
from boom_ray.merge.inputs import LowRank, MergeInput

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PLAIN: dict[str, tuple[Any, ...]] = {  # settings of adapters that are nothing but a product of two matrices
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),  # others change the base too
}
# Settings of the training, and those that the tensors of the adapter show. Every other one must be off: peft
# has a new one in most releases, and what it does to the weights is not known here.
WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("exclude_modules", "layers_pattern", "layers_to_transform", "r", "rank_pattern", "target_modules"),
    *("lora_alpha", "lora_dropout", "use_rslora", "runtime_config", "megatron_core", "qalora_group_size"),
}


def is_adapter(model: str) -> bool:
    """Whether a directory contains an adapter instead of a model."""
    return storage.is_file(storage.join(model, CONFIG))


def read_adapter(model: str, base: str | None) -> MergeInput:
    """An adapter and its base model, as one model.

    Args:
        model: URI of the adapter's directory, in peft's layout.
        base: URI of its base model; None for the one that the adapter names.

    Raises:
        InputError: if it is not a plain LoRA adapter, or does not fit its base model.
    """
    config = json.loads(storage.read_bytes(storage.join(model, CONFIG)))
    problems = [
        f"{model}: adapter with {key}: {value!r}; only {key}: {PLAIN.get(key, (False,))[0]!r} can be merged"
        for key, value in config.items()
        if key not in WITHOUT_EFFECT and (value not in PLAIN[key] if key in PLAIN else value)
    ]
    if problems:
        raise InputError.of(problems, "cannot be merged into its base model:")
    base = _base(config["base_model_name_or_path"]) if base is None else base
    places = read_places(base)
    found = read_header(storage.join(model, WEIGHTS))
    pairs = {name.removesuffix(".lora_A.weight") for name in found if name.endswith(".lora_A.weight")}
    left = found.keys() - {f"{pair}.lora_{side}.weight" for pair in pairs for side in "AB"}
    if left:
        raise InputError(
            f"{model}: adapter tensors other than lora_A and lora_B: {', '.join(sorted(left)[:5])}"
        )
    adapter = {}
    for pair in sorted(pairs):
        a, b = found[f"{pair}.lora_A.weight"], found[f"{pair}.lora_B.weight"]
        name = _target(model, base, f"{pair.removeprefix(PREFIX)}.weight", places)
        if places[name].shape != (b.shape[0], a.shape[1]) or a.shape[0] != b.shape[1]:
            raise InputError(
                f"{model}: {pair}: {list(b.shape)} times {list(a.shape)} does not fit "
                f"{list(places[name].shape)} of {base}"
            )
        rank = math.sqrt(a.shape[0]) if config.get("use_rslora") else a.shape[0]
        adapter[name] = LowRank(a, b, config["lora_alpha"] / rank)
    return MergeInput(model, places, base, adapter=adapter)


def _base(name: str) -> str:
    return name if storage.exists(name) else storage.local_directory(storage.hub_uri(name))


def _target(model: str, base: str, name: str, places: dict[str, TensorPlace]) -> str:
    """The base model's name of a tensor, with or without the prefix `model.`."""
    for candidate in (name, name.removeprefix("model."), f"model.{name}"):
        if candidate in places:
            return candidate
    raise InputError(f"{model}: adapts {name}, which {base} does not have. Check that this is its base model")

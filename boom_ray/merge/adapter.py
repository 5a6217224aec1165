"""LoRA adapters as models: the tensors of their base model, with low-rank updates added as they are read."""

import math
import re
from typing import Any

from boom_ray import storage
from boom_ray.artifacts.tensors import TensorPlace, read_header, read_places
from boom_ray.errors import BoomError, InputError
from boom_ray.merge.inputs import LowRank, MergeInput
from boom_ray.model import files

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
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
    config = files.read_object(model, CONFIG)
    problems = [
        f"{model}: adapter with {key}: {value!r}; only {key}: {PLAIN.get(key, (False,))[0]!r} can be merged"
        for key, value in config.items()
        if key not in WITHOUT_EFFECT and (value not in PLAIN[key] if key in PLAIN else value)
    ]
    if not isinstance(config.get("lora_alpha"), int | float):
        problems.append(f"{model}: {CONFIG}: lora_alpha: got {config.get('lora_alpha')!r}; expected a number")
    if problems:
        raise InputError.of(problems, "cannot be merged into its base model:")
    base = _base(model, config) if base is None else base
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


def _base(model: str, config: dict[str, Any]) -> str:
    """URI of the base model that an adapter names: a path, or a repository of the hub.

    Raises:
        InputError: if it names none, or one that is neither a directory nor a repository that can be read.
    """
    name = config.get("base_model_name_or_path")
    remedy = "Name it as the base model of the merge"
    if not name or not isinstance(name, str):
        raise InputError(f"{model}: {CONFIG} names no base model. {remedy}")
    if storage.exists(storage.absolute(name)):
        return storage.absolute(name)
    if not REPOSITORY.fullmatch(name):
        raise InputError(f"{model}: its base model {name} does not exist. {remedy}")
    try:
        return storage.local_directory(storage.hub_uri(name))
    except BoomError as error:
        raise InputError(f"{model}: its base model {name} cannot be read: {error}. {remedy}") from error


def _target(model: str, base: str, name: str, places: dict[str, TensorPlace]) -> str:
    """The base model's name of a tensor, with or without the prefix `model.`."""
    for candidate in (name, name.removeprefix("model."), f"model.{name}"):
        if candidate in places:
            return candidate
    raise InputError(f"{model}: adapts {name}, which {base} does not have. Check that this is its base model")

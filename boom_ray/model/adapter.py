"""LoRA adapters in peft's layout: a base model, and low-rank updates of some of its tensors."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from boom_ray import storage
from boom_ray.artifacts.tensors import TensorPlace, read_header, read_places
from boom_ray.errors import BoomError, InputError
from boom_ray.model import files
from boom_ray.model.tensor_names import plain_names
from boom_ray.recipe import Lora

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
PLAIN: dict[str, tuple[Any, ...]] = {  # settings of adapters that are nothing but a product of two matrices
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),  # others change the base too
}
# Settings of the training, and those that are read below or that the tensors of the adapter show. Every other
# one must be off: peft has a new one in most releases, and what it does to the weights is not known here.
WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("exclude_modules", "layers_pattern", "layers_to_transform", "r", "rank_pattern", "target_modules"),
    *("lora_alpha", "lora_dropout", "use_rslora", "runtime_config", "megatron_core", "qalora_group_size"),
    *("alpha_pattern", "eva_config", "fan_in_fan_out"),
}
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
CONV1D = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)$")  # layers that store [in, out]


class AdapterConfig(files.ModelFile):
    """The settings of an adapter that its update depends on."""

    peft_type: str
    lora_alpha: float
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    base_model_name_or_path: str | None = None
    revision: str | None = None

    @field_validator("alpha_pattern")
    @classmethod
    def _has_patterns(cls, patterns: dict[str, float]) -> dict[str, float]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return patterns

    def scale(self, layer: str, rank: int) -> float:
        """Factor on B A; the first pattern that ends the name of a layer gives its alpha, as in peft."""
        patterns = (key for key in self.alpha_pattern if re.match(rf"(.*\.)?({key})$", layer))
        alpha = self.alpha_pattern.get(next(patterns, layer), self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True)
class LowRank:
    """A LoRA update of one tensor: `scale * b @ a`, with `a` [rank, in] and `b` [out, rank].

    Attributes:
        transposed: Whether the tensor is stored as [in, out], as in the Conv1D layers of GPT-2.
    """

    a: TensorPlace
    b: TensorPlace
    scale: float
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that is updated."""
        shape = (self.b.shape[0], self.a.shape[1])
        return shape[::-1] if self.transposed else shape


@dataclass(frozen=True)
class Adapter:
    """An adapter and its base model.

    Attributes:
        base: URI of the base model.
        places: Byte range of each tensor of the base model.
        updates: The updates of tensors in `places`.
    """

    base: str
    places: dict[str, TensorPlace]
    updates: dict[str, LowRank]


def is_adapter(model: str) -> bool:
    """Whether a directory contains an adapter instead of a model."""
    return storage.is_file(storage.join(model, CONFIG))


def read_config(model: str) -> AdapterConfig:
    """The settings of an adapter.

    Raises:
        InputError: if it is not a plain LoRA adapter.
    """
    problems = [
        f"{model}: adapter with {key}: {value!r}; only {key}: {PLAIN.get(key, (False,))[0]!r} can be merged"
        for key, value in files.read_object(model, CONFIG).items()
        if key not in WITHOUT_EFFECT and (value not in PLAIN[key] if key in PLAIN else value)
    ]
    if problems:
        raise InputError.of(problems, "cannot be merged into its base model:")
    return files.read(model, CONFIG, AdapterConfig)


def base_of(model: str, config: AdapterConfig) -> str:
    """URI of the base model that an adapter names: a path, or a repository of the hub, which is downloaded.

    Raises:
        InputError: if it names none, or one that is neither a directory nor a repository that can be read.
    """
    name = config.base_model_name_or_path
    remedy = "Put it there, or merge the adapter with its base model named"
    if not name:
        raise InputError(f"{model}: {CONFIG} names no base model. {remedy}")
    if storage.exists(storage.absolute(name)):
        return storage.absolute(name)
    if not REPOSITORY.fullmatch(name):
        raise InputError(f"{model}: its base model {name} does not exist. {remedy}")
    try:
        return storage.local_directory(
            storage.hub_uri(f"{name}@{config.revision}" if config.revision else name)
        )
    except BoomError as error:
        raise InputError(f"{model}: its base model {name} cannot be read: {error}. {remedy}") from error


def read(model: str, config: AdapterConfig, base: str) -> Adapter:
    """The updates of each tensor that an adapter changes, by the base model's name of it.

    Args:
        model: URI of the adapter's directory.
        base: URI of its base model.

    Raises:
        InputError: if the adapter does not fit its base model.
    """
    places, found = read_places(base), read_header(storage.join(model, WEIGHTS))
    pairs = {name.removesuffix(".lora_A.weight") for name in found if name.endswith(".lora_A.weight")}
    expected = {f"{pair}.lora_{side}.weight" for pair in pairs for side in "AB"}
    if unpaired := sorted(found.keys() ^ expected):
        raise InputError(
            f"{model}: tensors that are not pairs of lora_A and lora_B: {', '.join(unpaired[:5])}"
        )
    plain = dict(zip(plain_names(places), places, strict=True))
    has_conv1d = files.config_of(base).get("model_type") in CONV1D_MODELS
    updates = {}
    for pair in sorted(pairs):
        layer = pair.removeprefix(PREFIX)
        a, b = (found[f"{pair}.lora_{side}.weight"] for side in "AB")
        name = _target(model, base, f"{layer}.weight", plain, places)
        transposed = has_conv1d and bool(CONV1D.search(layer))
        if config.fan_in_fan_out and not transposed:
            raise InputError(f"{model}: {pair}: fan_in_fan_out is for Conv1D layers of GPT-2 only")
        if not (len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1] > 0):
            raise InputError(
                f"{model}: {pair}: {list(b.shape)} times {list(a.shape)} is not a matrix product"
            )
        low = LowRank(a, b, config.scale(layer, a.shape[0]), transposed)
        if places[name].shape != low.shape:
            raise InputError(
                f"{model}: {pair}: {list(b.shape)} times {list(a.shape)} does not fit "
                f"{list(places[name].shape)} of {base}"
            )
        updates[name] = low
    return Adapter(base, places, updates)


def _target(model: str, base: str, name: str, plain: dict[str, str], places: dict[str, TensorPlace]) -> str:
    """The base model's name of a tensor; either may have a prefix (`model.`, `bert.`)."""
    for candidate in (name, name.partition(".")[2]):
        if candidate in places:
            return candidate
        if candidate in plain:
            return plain[candidate]
    raise InputError(f"{model}: adapts {name}, which {base} does not have. Check that this is its base model")


def write_config(directory: str, lora: Lora, layers: Iterable[str], base: str) -> None:
    """Write the settings of an adapter, from which peft and transformers load it.

    Args:
        directory: A local directory.
        layers: Full names of the layers that it adapts.
        base: URI of its base model.
    """
    name, revision = storage.hub_name(base) if storage.is_hub(base) else (base, None)
    config = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": name,
        "revision": revision,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": sorted(layers),
        "inference_mode": True,
    }
    files.write_json(directory, CONFIG, config)

"""The shape of a base model: its parameters, its matrix products and its widths."""

import json
import logging
from dataclasses import dataclass
from typing import Any

from boom_ray import storage
from boom_ray.errors import BoomError, InputError, NotFoundError
from boom_ray.model import files
from boom_ray.planner.assumptions import Assumptions
from boom_ray.recipe import Lora

MAX_LAYERS = 1000  # each one takes time and memory to build, also without weights
logger = logging.getLogger(__name__)

#: The `config.json` of the base models of our recipes, so that a plan of them needs no access to the hub.
CONFIGS: dict[str, dict[str, Any]] = {
    f"Qwen/Qwen3-{name}": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
    }
    for name, hidden, intermediate, layers, heads in [
        ("0.6B", 1024, 3072, 28, 16),
        ("1.7B", 2048, 6144, 28, 16),
        ("4B", 2560, 9728, 36, 32),
        ("8B", 4096, 12288, 36, 32),
    ]
}
NUMBERS = (
    *("parameters", "multiplying", "adapters", "layers", "hidden", "attention", "key_value"),
    *("intermediate", "gated", "rms_width"),
)


class ConfigNotFoundError(NotFoundError):
    """The base model's `config.json` cannot be read, and the caller has not given the model's shape."""


@dataclass(frozen=True)
class ModelShape:
    """A transformer without a head.

    Attributes:
        parameters: Parameters, embeddings included.
        multiplying: Parameters of linear layers, which multiply every token.
        adapters: Parameters of low-rank adapters; 0 if all parameters are trained.
        layers: Number of layers.
        hidden: Width of a token's state.
        attention: Width of all queries: heads x head width.
        key_value: Width of all keys, and of all values.
        intermediate: Width between the matrices of a feed-forward layer.
        gated: 1 if a third matrix gates the feed-forward layer, else 0.
        rms_width: Sum of the widths of a layer's RMS norms, which compute in float32; 0 for layer norms.
        causal: Whether attention is causal.
    """

    parameters: float
    multiplying: float
    adapters: float
    layers: float
    hidden: float
    attention: float
    key_value: float
    intermediate: float
    gated: float
    rms_width: float
    causal: bool = True

    @property
    def trained(self) -> float:
        """Parameters that get a gradient."""
        return self.adapters or self.parameters

    def forward_flops(self, tokens: float, length: float) -> float:
        """FLOPs of a forward pass: two per token and multiplying parameter, and those of attention.

        Scores and the weighted sum of values take 4 x length x width FLOPs per token and layer (Narayanan et
        al., arXiv 2104.04473, appendix). The half that a causal model could skip is counted.

        Args:
            tokens: Tokens of all texts, padding included.
            length: Length of the text of a token, mean over tokens.
        """
        products = 2 * (self.multiplying + self.adapters)
        return tokens * (products + 4 * length * self.attention * self.layers)


def read(uri: str, config_file: str | None, lora: Lora | None, assume: Assumptions) -> ModelShape:
    """The shape of a base model.

    Args:
        uri: URI of the model; `hf://owner/name` is looked up in `CONFIGS`, the hub's cache, and the hub.
        config_file: URI of a `config.json` that replaces the one at `uri`.
        lora: Adapters to train.

    Raises:
        ConfigNotFoundError: if there is no configuration, and not all of `model.*` is overridden.
        NotFoundError: if `config_file` does not exist.
    """
    config = _config(uri, config_file)
    names = [f"model.{name}" for name in NUMBERS if name != "adapters"]
    missing = [name for name in names if name not in assume.overrides]
    if config is None and missing:
        raise ConfigNotFoundError(
            f"{uri}: the base model's config.json cannot be read. Name a copy of it as config_file, or "
            f"override the assumptions {', '.join(missing)}"
        )
    found = of_config(config, lora) if config else None
    values = {}
    for name in NUMBERS:
        default = getattr(found, name) if found else 0.0
        values[name] = assume.take(f"model.{name}", default, "", config_file or f"config.json of {uri}")
    return ModelShape(**values, causal=found.causal if found else bool(values["gated"]))


def of_config(config: dict[str, Any], lora: Lora | None = None) -> ModelShape:
    """The shape of the model that `transformers` builds from a `config.json`, on the meta device.

    Raises:
        InputError: if `transformers` has no such model.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    from boom_ray.train.lora import target_layers

    rest = {key: value for key, value in config.items() if key != "model_type"}
    try:
        parsed = AutoConfig.for_model(config["model_type"], **rest)
        if parsed.num_hidden_layers > MAX_LAYERS:
            raise ValueError(f"num_hidden_layers: got {parsed.num_hidden_layers}; allowed: {MAX_LAYERS}")
        with torch.device("meta"):
            model = AutoModel.from_config(parsed)
    except Exception as error:  # whatever a model's code raises for the values of its configuration
        raise InputError(f"config.json: transformers cannot build this model: {error!r}") from error
    weights = {name: tuple(p.shape) for name, p in model.named_parameters() if not name.startswith("pooler.")}
    linear = {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith("pooler.")
    }
    adapted = [sum(linear[name]) for name in target_layers(model, lora.targets)] if lora else []
    width = getattr(parsed, "head_dim", None) or parsed.hidden_size // parsed.num_attention_heads
    return ModelShape(
        parameters=sum(p.numel() for p in model.parameters()),
        multiplying=sum(inputs * outputs for inputs, outputs in linear.values()),
        adapters=sum(lora.rank * size for size in adapted) if lora else 0,
        layers=parsed.num_hidden_layers,
        hidden=parsed.hidden_size,
        attention=parsed.num_attention_heads * width,
        key_value=_key_value_heads(parsed) * width,
        intermediate=getattr(parsed, "intermediate_size", 4 * parsed.hidden_size),
        gated=float(any("gate" in name for name in weights)),
        rms_width=_rms_width(model, parsed),
        causal=any(getattr(module, "is_causal", False) for module in model.modules()),
    )


def _rms_width(model: Any, config: Any) -> int:
    """Sum of the widths of the first layer's RMS norms; those of queries and keys apply to every head."""
    heads = {"q_norm": config.num_attention_heads, "k_norm": _key_value_heads(config)}
    return sum(
        module.weight.numel() * heads.get(name.rpartition(".")[2], 1)
        for name, module in model.named_modules()
        if "RMSNorm" in type(module).__name__ and ".0." in f".{name}."
    )


def _key_value_heads(config: Any) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def is_readable(uri: str) -> bool:
    """Whether a model outside the hub has a `config.json` that this process can read."""
    try:
        return storage.is_file(storage.join(uri, "config.json"))
    except BoomError as error:
        logger.info("%s: not readable, the plan uses assumptions: %s", uri, error)
        return False


def _config(uri: str, config_file: str | None) -> dict[str, Any] | None:
    if config_file:
        path = storage.absolute(config_file)
        if not storage.is_file(path):
            raise NotFoundError(f"config_file {path}: no such file")
        return files.read_object(storage.parent_of(path), storage.name_of(path))
    if not storage.is_hub(uri):
        return files.read_config(uri) if is_readable(uri) else None
    from huggingface_hub import hf_hub_download

    repository, revision = storage.hub_name(uri)
    if repository in CONFIGS:
        return CONFIGS[repository]
    try:
        with open(hf_hub_download(repository, "config.json", revision=revision), "rb") as file:
            return json.load(file)
    except OSError:  # the base of every error of huggingface_hub for an unreachable or missing file
        return None

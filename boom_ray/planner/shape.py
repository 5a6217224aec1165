"""What of a base model a plan needs: how many weights it has, which of them multiply, and how wide it is."""

import json
from dataclasses import dataclass
from typing import Any

from boom_ray import storage
from boom_ray.errors import BoomError
from boom_ray.planner.assumptions import Assumptions
from boom_ray.recipe import Lora

#: The `config.json` of models that recipes of ours start from, for plans without the hub.
KNOWN: dict[str, dict[str, Any]] = {
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


@dataclass(frozen=True)
class Shape:
    """A transformer without a head.

    Attributes:
        parameters: Weights, embeddings included.
        multiplying: Those of linear layers that every token passes.
        adapters: Weights of low-rank adapters; 0 where all weights are trained.
        layers: Layers.
        hidden: Width of a token's state.
        attention: Width of all queries: heads times their width.
        key_value: Width of all keys, and of all values.
        intermediate: Width between the two matrices of a feed-forward layer.
        gated: 1 where a third matrix gates it, else 0.
        rms_width: Summed widths of a layer's RMS norms, which compute in float32; 0 for layer norms.
        causal: Whether tokens see only what is before them.
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
        """Weights that get a gradient."""
        return self.adapters or self.parameters

    def forward_flops(self, tokens: float, length: float) -> float:
        """Of a forward pass: two for each weight that multiplies and each token, and those of attention.

        The scores and the sums over values take 4 x length x width for each token and layer (Narayanan et
        al., arXiv 2104.04473, appendix). The half that a causal model could leave out is counted.

        Args:
            tokens: Of all texts, padding included.
            length: Of the text that a token is in, mean over tokens.
        """
        products = 2 * (self.multiplying + self.adapters)
        return tokens * (products + 4 * length * self.attention * self.layers)


def read(uri: str, config_file: str | None, lora: Lora | None, assume: Assumptions) -> Shape:
    """The shape of a base model.

    Args:
        uri: Of the model; `hf://owner/name` is looked up in the hub's cache, the hub, and `KNOWN`.
        config_file: Its `config.json`, instead of the one at `uri`.
        lora: Adapters that are trained.

    Raises:
        BoomError: if there is no configuration, and not all numbers are given.
    """
    config = _config(uri, config_file)
    names = [f"model.{name}" for name in NUMBERS if name != "adapters"]
    missing = [name for name in names if name not in assume.given]
    if config is None and missing:
        raise BoomError(
            f"{uri}: its config.json cannot be reached. Give it as --config FILE, or all numbers of the "
            f"model's shape: --assume {' --assume '.join(f'{name}=…' for name in missing)}"
        )
    found = of_config(config, lora) if config else None
    values = {}
    for name in NUMBERS:
        own = getattr(found, name) if found else 0.0
        values[name] = assume.take(f"model.{name}", own, "", config_file or f"config.json of {uri}")
    return Shape(**values, causal=found.causal if found else bool(values["gated"]))


def of_config(config: dict[str, Any], lora: Lora | None = None) -> Shape:
    """The shape that a `config.json` describes, of the model as `transformers` builds it, without memory.

    Raises:
        BoomError: if it describes no model that `transformers` knows.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    rest = {key: value for key, value in config.items() if key != "model_type"}
    try:
        parsed = AutoConfig.for_model(config["model_type"], **rest)
        with torch.device("meta"):
            model = AutoModel.from_config(parsed)
    except (KeyError, ValueError) as error:
        raise BoomError(f"config.json: not a model that transformers knows: {error}") from error
    weights = {name: tuple(p.shape) for name, p in model.named_parameters() if not name.startswith("pooler.")}
    linear = {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith("pooler.")
    }
    adapted = [sum(size) for name, size in linear.items() if lora and name.rpartition(".")[2] in lora.targets]
    width = getattr(parsed, "head_dim", None) or parsed.hidden_size // parsed.num_attention_heads
    norms = {name: module for name, module in model.named_modules() if "RMSNorm" in type(module).__name__}
    heads = {"q_norm": parsed.num_attention_heads, "k_norm": _key_value_heads(parsed)}
    rms = sum(
        module.weight.numel() * heads.get(name.rpartition(".")[2], 1)
        for name, module in norms.items()
        if ".0." in f".{name}."
    )
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        multiplying=sum(inside * outside for inside, outside in linear.values()),
        adapters=sum(lora.rank * size for size in adapted) if lora else 0,
        layers=parsed.num_hidden_layers,
        hidden=parsed.hidden_size,
        attention=parsed.num_attention_heads * width,
        key_value=_key_value_heads(parsed) * width,
        intermediate=getattr(parsed, "intermediate_size", 4 * parsed.hidden_size),
        gated=float(any("gate" in name for name in weights)),
        rms_width=rms,
        causal=any(getattr(module, "is_causal", False) for module in model.modules()),
    )


def _key_value_heads(config: Any) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _config(uri: str, config_file: str | None) -> dict[str, Any] | None:
    if config_file:
        return json.loads(storage.read_bytes(storage.absolute(config_file)))
    if not storage.is_hub(uri):
        return json.loads(storage.read_bytes(storage.join(uri, "config.json")))
    from huggingface_hub import hf_hub_download

    repository, revision = storage.hub_name(uri)
    if repository in KNOWN:
        return KNOWN[repository]
    try:
        with open(hf_hub_download(repository, "config.json", revision=revision), "rb") as file:
            return json.load(file)
    except OSError:  # all that the hub's client raises for what it cannot reach
        return None

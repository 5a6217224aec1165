"""Low-rank adapters (arXiv 2106.09685): attached to linear layers for training, and saved."""

import os
from collections.abc import Sequence

from safetensors.torch import save_file
from torch import Tensor, nn

from boom_ray.errors import InputError
from boom_ray.model import adapter
from boom_ray.recipe import Lora

ADAPTER = "default"  # peft's name of the adapter, which is part of the names of its weights
ALL_LINEAR = "all-linear"


def attach(transformer: nn.Module, lora: Lora) -> None:
    """Attach adapters to the layers named in a recipe, in place, and freeze all other weights.

    Raises:
        InputError: if peft is not installed, or a target is not a linear layer of the model.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("train.lora needs peft: pip install 'boom-ray[lora]'") from error
    layers = target_layers(transformer, lora.targets)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=layers)  # type: ignore[arg-type]
    inject_adapter_in_model(config, transformer, ADAPTER)


def target_layers(transformer: nn.Module, targets: Sequence[str]) -> list[str]:
    """Full names of the layers that get an adapter.

    Only `nn.Linear` is allowed, whose weight is stored as [out, in], as B A is. GPT-2's Conv1D stores its
    transpose, and an embedding has other factors. A pooler is never trained.

    Args:
        targets: Last parts of names, such as `q_proj` or `attention.output.dense`; `all-linear` for all.

    Raises:
        InputError: naming each target that is not a linear layer.
    """
    modules = {name: m for name, m in transformer.named_modules() if not name.startswith("pooler.")}
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    chosen, problems = dict.fromkeys(linear if ALL_LINEAR in targets else []), []
    for target in targets:
        found = [name for name in modules if f".{name}".endswith(f".{target}")]
        other = {type(modules[name]).__name__ for name in found if name not in linear}
        if other:
            problems.append(f"{target} is of type {', '.join(sorted(other))}")
        elif not found and target != ALL_LINEAR:
            problems.append(f"{target} is not in the model")
        chosen |= dict.fromkeys(found)
    if not linear:
        raise InputError("train.lora: the model has no linear layer. Remove train.lora to train all weights")
    if problems:
        allowed = sorted({name.rpartition(".")[2] for name in linear})
        raise InputError(
            f"train.lora.targets: {'; '.join(problems)}; allowed: linear layers: {', '.join(allowed)}, or "
            f"{ALL_LINEAR}"
        )
    return list(chosen)


def save(factors: dict[str, Tensor], lora: Lora, base: str, directory: str) -> None:
    """Write a trained adapter in peft's layout.

    Args:
        factors: Both matrices of each layer, as `attach` names them.
        base: URI of the base model, as the adapter will name it.
        directory: A local directory.
    """
    named = {adapter.PREFIX + name.replace(f".{ADAPTER}.", "."): factor for name, factor in factors.items()}
    layers = {name.partition(".lora_")[0] for name in factors}
    adapter.write_config(directory, lora, layers, base)
    save_file(named, os.path.join(directory, adapter.WEIGHTS), {"format": "pt"})

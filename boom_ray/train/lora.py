"""Low-rank adapters (arXiv 2106.09685): attached to linear layers for training, folded at export."""

from torch import Tensor, nn

from boom_ray.errors import InputError
from boom_ray.recipe import Lora

ADAPTER = "default"  # peft's name of the adapter, which is part of the names of its weights


def attach(transformer: nn.Module, lora: Lora) -> None:
    """Attach adapters to the layers named in a recipe, in place, and freeze all other weights.

    Raises:
        InputError: if peft is not installed, or the model has no such layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("train.lora needs peft: pip install 'boom-ray[lora]'") from error
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets)  # type: ignore[arg-type]
    try:
        inject_adapter_in_model(config, transformer, ADAPTER)
    except ValueError as error:
        allowed = {
            name.rpartition(".")[2] for name, m in transformer.named_modules() if isinstance(m, nn.Linear)
        }
        raise InputError(
            f"train.lora.targets: none of {', '.join(lora.targets)} is a layer of the model; "
            f"allowed: {', '.join(sorted(allowed))}"
        ) from error


def fold(weights: dict[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """Fold adapters into their layers: W + alpha / rank * B A, computed in float32.

    Args:
        weights: All weights by name, as `attach` names them.

    Returns:
        Weights with the names and dtypes of the model without adapters.
    """
    folded = {}
    for name, weight in weights.items():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")  # peft wraps a layer and calls the original base_layer
        stem = plain.removesuffix(".weight")
        down, up = (weights.get(f"{stem}.lora_{part}.{ADAPTER}.weight") for part in "AB")
        if plain.endswith(".weight") and down is not None and up is not None:
            weight = (weight.float() + lora.alpha / lora.rank * (up.float() @ down.float())).to(weight.dtype)
        folded[plain] = weight
    return folded

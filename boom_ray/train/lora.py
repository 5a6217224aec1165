"""Low-rank adapters (arXiv 2106.09685): put on linear layers for training, folded into them at export."""

from torch import Tensor, nn

from boom_ray.errors import BoomError
from boom_ray.recipe import Lora

ADAPTER = "default"


def attach(transformer: nn.Module, lora: Lora) -> None:
    """Put adapters on the layers a recipe names, in place; nothing else stays trainable.

    Raises:
        BoomError: if peft is not installed, or the model has no such layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise BoomError("train.lora needs peft: pip install 'boom-ray[lora]'") from error
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets)  # type: ignore[arg-type]
    try:
        inject_adapter_in_model(config, transformer, ADAPTER)
    except ValueError as error:
        linear = {
            name.rpartition(".")[2] for name, m in transformer.named_modules() if isinstance(m, nn.Linear)
        }
        raise BoomError(
            f"train.lora.targets: none of {', '.join(lora.targets)} is a layer of the model; "
            f"it has {', '.join(sorted(linear))}"
        ) from error


def fold(weights: dict[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """Whole weights from those of layers with adapters: W + alpha / rank * B A, computed in float32.

    Args:
        weights: By name, as `attach` names them.

    Returns:
        By the names and in the dtypes of the model without adapters.
    """
    folded = {}
    for name, weight in weights.items():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        stem = plain.removesuffix(".weight")
        down, up = (weights.get(f"{stem}.lora_{part}.{ADAPTER}.weight") for part in "AB")
        if plain.endswith(".weight") and down is not None and up is not None:
            weight = (weight.float() + lora.alpha / lora.rank * (up.float() @ down.float())).to(weight.dtype)
        folded[plain] = weight
    return folded

"""The fp32 master weights of a DeepSpeed engine: set from the base model, and read to be published.

In bf16 and fp16 the optimizer updates fp32 copies of the weights, from which those of the model are rounded
after every step. Most steps change a weight by less than half a step of bf16, so that only the copy moves.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def trained_weights(engine: "DeepSpeedEngine", model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a submodule that are trained, on the CPU of rank 0; empty on other ranks.

    Runs on every rank. With ZeRO each rank has a part of the master weights; they are gathered one at a time
    to limit memory.

    Args:
        dtype: Type that they are rounded to.
    """
    weights = {}
    for name, weight in master_weights(engine, model):
        if engine.global_rank == 0:
            weights[name] = weight.to("cpu", dtype, copy=True)
    return weights


def master_weights(engine: "DeepSpeedEngine", model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and fp32 value of each weight of a submodule that is trained, on every rank; one at a time."""
    from deepspeed.utils import safe_get_full_fp32_param

    for name, parameter in trainable(model).items():
        master = safe_get_full_fp32_param(parameter)
        # DeepSpeed has no separate copy without ZeRO, which needs fp32.
        yield name, (parameter if master is None else master).detach()


def set_master_weights(engine: "DeepSpeedEngine", model: nn.Module, exact: Mapping[str, Tensor]) -> None:
    """Start the master weights of a submodule from values that its own precision has rounded.

    DeepSpeed copies the rounded weights, and their rounding would count as a difference to the base model.
    Runs on every rank, before the first step.

    Args:
        exact: [shape of the weight] float32, for every trained weight by name.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    for name, parameter in trainable(model).items():
        if hasattr(parameter, "ds_id"):  # ZeRO-3
            safe_set_local_fp32_param(parameter, _share(exact[name], parameter, engine.global_rank))
        else:
            safe_set_full_fp32_param(parameter, exact[name])


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _share(value: Tensor, parameter: Any, rank: int) -> Tensor:
    """A rank's elements of a weight, with zeros behind the last, as ZeRO-3 partitions it."""
    size = parameter.ds_tensor.numel()
    own = value.flatten()[rank * size : (rank + 1) * size]
    return nn.functional.pad(own, (0, size - own.numel()))

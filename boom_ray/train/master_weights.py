"""The fp32 master weights of a DeepSpeed engine: set from the base model, and read to be published.

In bf16 and fp16 the optimizer updates fp32 copies of the weights, from which those of the model are rounded
after every step. Most steps change a weight by less than half a step of bf16, so that only the copy moves.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from boom_ray.train.partitions import WEIGHT, fragments_of, trainable

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

    Args:
        exact: [shape of the weight] float32, for every trained weight by name.
    """
    for fragment in fragments_of(engine, model):
        state, _, name = fragment.tensor.partition("/")
        if state == WEIGHT:
            end = fragment.start + fragment.values.numel()
            fragment.values.copy_(exact[name].flatten()[fragment.start : end])

"""What one rank holds of the trained weights, in float32, at every ZeRO stage.

Each trained weight has a master weight and both moments of Adam. Without ZeRO every rank holds all of them.
Stages 1 and 2 cut all weights of an optimizer group, one behind the other, into one part per rank; stage 3
cuts each weight. This is the only file that uses private API of DeepSpeed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from boom_ray.train.fragments import Fragment

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

WEIGHT = "weight"
STATES = (WEIGHT, "exp_avg", "exp_avg_sq")  # the moments have the names that AdamW gives them
Held = tuple[int, Tensor]  # first element of a flattened weight that a rank holds, and the values from it on


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def shape_of(parameter: Any) -> torch.Size:
    """The shape of a parameter, also where stage 3 has left it without elements."""
    return getattr(parameter, "ds_shape", parameter.shape)


def fragments_of(engine: "DeepSpeedEngine", model: nn.Module) -> list[Fragment]:
    """What this rank holds of the master weights of a submodule and of their moments.

    The tensors are named `STATE/NAME` (`STATES`), and all of one state are next to each other.
    """
    held_by_stage: dict[int, Callable[[Any, Any, str], Held | None]] = {1: _flat, 2: _flat, 3: _sharded}
    held = held_by_stage.get(engine.zero_optimization_stage(), _whole)
    fragments = []
    for state in STATES:
        for name, parameter in trainable(model).items():
            found = held(engine, parameter, state)
            if found is not None and found[1].numel():
                size = shape_of(parameter).numel()
                fragments.append(Fragment(f"{state}/{name}", size, found[0], found[1].detach()))
    return fragments


def _whole(engine: Any, parameter: nn.Parameter, state: str) -> Held:
    """Without ZeRO the parameter is the master weight."""
    held = parameter if state == WEIGHT else engine.basic_optimizer.state[parameter][state]
    return 0, held.view(-1)


def _flat(engine: Any, parameter: Any, state: str) -> Held | None:
    mapping = getattr(parameter, "_hp_mapping", None)
    if mapping is None:
        return None  # all of it is on other ranks
    held = mapping.get_hp_fragment(None if state == WEIGHT else state)
    return mapping.lp_fragment_address.start, held


def _sharded(engine: Any, parameter: Any, state: str) -> Held:
    key = None if state == WEIGHT else state
    # `safe_get_local_fp32_param` is the same, but copies to the GPU what is offloaded.
    held, _ = engine.optimizer._get_fp32_opt_state_partition(parameter, True, key)
    start = engine.global_rank * held.numel()
    return start, held[: max(0, parameter.ds_numel - start)]  # the last rank's is padded


def create_moments(engine: "DeepSpeedEngine") -> None:
    """Allocate the moments, which AdamW does in its first step.

    Before it they could not be filled, and a measurement of free memory would miss them.
    """
    optimizer: Any = engine.basic_optimizer
    for tensor in _updated(engine):
        state = optimizer.state[tensor]
        if not state:
            device = tensor.device if optimizer.defaults["fused"] else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(tensor), torch.zeros_like(tensor)
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _updated(engine: Any) -> list[Tensor]:
    """The tensors that AdamW updates; stage 3 shows it one at a time."""
    if engine.zero_optimization_stage() == 3:
        return engine.optimizer.fp32_partitioned_groups_flat
    return [tensor for group in engine.basic_optimizer.param_groups for tensor in group["params"]]


def update_model(engine: "DeepSpeedEngine") -> None:
    """Round the weights of the model from the master weights, as a step does. Runs on every rank."""
    optimizer: Any = engine.optimizer
    stage = engine.zero_optimization_stage()
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        optimizer.checkpoint_event_prologue()  # releases all weights
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer.checkpoint_event_epilogue()  # gathers those that stay whole

"""What DeepSpeed is told, and how its state becomes files and files its state.

DeepSpeed is imported inside the functions that run on workers: a CPU-only driver must not import it.
"""

import datetime
import os
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import distributed_c10d

from boom_ray.recipe import Train, TrainExecution

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

TAG = "state"


def engine_config(train: Train, num_ranks: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe.

    The micro-batch is only nominal: `boom_ray.train.step` cuts a global batch into chunks by tokens and tells
    DeepSpeed which backward pass is the step's last.
    """
    execution = train.execution
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": num_ranks,
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": {"stage": execution.zero_stage, **_offload(execution)},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its own AdamW needs a compiler on every node
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if train.precision != "fp32":
        config[train.precision] = {"enabled": True}
    return config


def _offload(execution: TrainExecution) -> dict[str, Any]:
    host = {"device": "cpu", "pin_memory": execution.use_gpu}
    parts = {"none": [], "optimizer": ["offload_optimizer"], "all": ["offload_optimizer", "offload_param"]}
    return dict.fromkeys(parts[execution.offload], host)


def decay(step: int, num_steps: int, warmup_ratio: float) -> float:
    """Share of the learning rate at a step: linear warm-up, then linear decay to zero at `num_steps`."""
    warmup = round(num_steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (num_steps - step) / max(1, num_steps - warmup))


def initialize(model: nn.Module, train: Train, num_steps: int, num_ranks: int) -> "DeepSpeedEngine":
    """Wrap a model in a DeepSpeed engine with AdamW and the recipe's schedule. Runs on every rank."""
    import deepspeed

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) == several] for several in (True, False))
    groups = [
        {"params": matrices, "weight_decay": train.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],  # DeepSpeed drops an empty one, the schedule does not
        lr=train.learning_rate,
        fused=train.execution.use_gpu and train.execution.offload == "none",
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: decay(step, num_steps, train.warmup_ratio)
    )
    engine, _, _, _ = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=schedule, config=engine_config(train, num_ranks)
    )
    _limit_collectives(train.execution.collective_timeout_s)
    return engine


def _limit_collectives(seconds: int) -> None:
    """Let a silent rank end every collective of this process after so long.

    DeepSpeed's own process groups are made with torch's default of half an hour, whatever that of the
    process is, and take no other.
    """
    for group in distributed_c10d._world.pg_map:
        if group is not None and dist.get_rank(group) >= 0:
            distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=seconds), group)


def optimizer_step(engine: "DeepSpeedEngine") -> float:
    """Clip, step and advance the schedule; returns the norm before clipping. Runs on every rank."""
    norm = None
    if not engine.zero_optimization() and not (engine.fp16_enabled() or engine.bfloat16_enabled()):
        # Only here DeepSpeed clips without telling the norm.
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
    engine.step()
    return float(engine.get_global_grad_norm() or 0.0) if norm is None else norm.item()


def save_state(engine: "DeepSpeedEngine", directory: str) -> None:
    """Write this rank's part of the training state below a local directory. Runs on every rank."""
    os.makedirs(os.path.join(directory, TAG), exist_ok=True)
    engine.save_checkpoint(directory, tag=TAG, save_latest=False)


def load_state(engine: "DeepSpeedEngine", directory: str) -> None:
    """Restore weights, optimizer and schedule from the files of all ranks. Runs on every rank."""
    path, _ = engine.load_checkpoint(directory, tag=TAG)
    assert path is not None, f"DeepSpeed found no state in {directory}"


def full_weights(engine: "DeepSpeedEngine", model: nn.Module) -> dict[str, Tensor]:
    """The whole weights of a sub-module on the CPU, on rank 0; empty elsewhere. Runs on every rank.

    ZeRO-3 holds each parameter in parts; they are gathered one at a time.
    """
    import deepspeed

    gather = engine.zero_optimization_partition_weights()
    keep = engine.global_rank == 0
    weights = (
        {name: buffer.cpu() for name, buffer in model.state_dict().items()} if keep and not gather else {}
    )
    for name, parameter in model.named_parameters() if gather else ():
        with deepspeed.zero.GatheredParameters([parameter]):
            if keep:
                weights[name] = parameter.detach().cpu().clone()
    return weights

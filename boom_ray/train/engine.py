"""The DeepSpeed engine: configuration and optimizer step.

DeepSpeed is imported inside the functions that run on workers, because its import takes seconds and probes
for accelerators, which a driver may not have.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from boom_ray.recipe import Train
from boom_ray.recipe.execution import TrainExecution
from boom_ray.train.buffers import REDUCE_BUCKET
from boom_ray.train.partitions import create_moments
from boom_ray.train.process_groups import set_collective_timeout

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def engine_config(train: Train, num_ranks: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe.

    The micro-batch size is nominal: `boom_ray.train.step` cuts a global batch into chunks by tokens, and sets
    DeepSpeed's accumulation boundary at the last backward pass of the step. Gradients of chunks are summed in
    fp32, so that their number does not matter in bf16 either.
    """
    execution = train.execution
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": num_ranks,
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": {
            "stage": execution.zero_stage,
            **_overlap(execution),
            **_offload(execution),
        },
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        # With offload, DeepSpeed would replace AdamW by its own, which needs a compiler on every node.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if train.precision != "fp32":
        config[train.precision] = {"enabled": True}
    if train.precision == "bf16":
        config["bf16"]["immediate_grad_update"] = True  # add each gradient at once, and free its bf16 form
    return config


def _overlap(execution: TrainExecution) -> dict[str, Any]:
    """Reduction of gradients during the backward pass: the default of ZeRO 3 only.

    In bf16, ZeRO 1 is DeepSpeed's `BF16_Optimizer`, which reduces all gradients after the last chunk.
    """
    if execution.zero_stage not in (1, 2):
        return {}
    return {"overlap_comm": True, "reduce_bucket_size": REDUCE_BUCKET}


def _offload(execution: TrainExecution) -> dict[str, Any]:
    host = {"device": "cpu", "pin_memory": execution.use_gpu}
    parts = {"none": [], "optimizer": ["offload_optimizer"], "all": ["offload_optimizer", "offload_param"]}
    return dict.fromkeys(parts[execution.offload], host)


def decay(step: int, num_steps: int, warmup_ratio: float) -> float:
    """Factor of the learning rate at a step: linear warm-up, then linear decay to zero at `num_steps`."""
    warmup = round(num_steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (num_steps - step) / max(1, num_steps - warmup))


def create_optimizer(model: nn.Module, train: Train) -> torch.optim.AdamW:
    """AdamW on all trainable weights, with weight decay of matrices only, not of biases and norms."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        # DeepSpeed drops an empty group but the schedule keeps it, and their numbers of groups must agree.
        [group for group in groups if group["params"]],
        lr=train.learning_rate,
        fused=train.execution.use_gpu and train.execution.offload == "none",
    )


def create_engine(model: nn.Module, train: Train, num_steps: int, num_ranks: int) -> "DeepSpeedEngine":
    """Wrap a model in a DeepSpeed engine with AdamW and the recipe's schedule. Runs on every rank."""
    import deepspeed

    optimizer = create_optimizer(model, train)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: decay(step, num_steps, train.warmup_ratio)
    )
    engine, _, _, _ = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=schedule, config=engine_config(train, num_ranks)
    )
    create_moments(engine)
    set_collective_timeout(train.execution.collective_timeout_s)
    return engine


def backward(engine: "DeepSpeedEngine", scalar: Tensor, is_last: bool) -> None:
    """Add the gradient of a scalar to that of the step; ranks exchange gradients in the last pass only."""
    engine.set_gradient_accumulation_boundary(is_last)
    engine.backward(scalar)


def learning_rate(engine: "DeepSpeedEngine") -> float:
    """The learning rate of the next step."""
    return engine.get_lr()[0]


def optimizer_step(engine: "DeepSpeedEngine") -> float:
    """Clip the gradient, step, and advance the schedule. Runs on every rank.

    Returns:
        Norm of the gradient before clipping.
    """
    norm = None
    if not engine.zero_optimization() and not (engine.fp16_enabled() or engine.bfloat16_enabled()):
        # In fp32 without ZeRO, DeepSpeed clips but does not record the norm.
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
    engine.step()
    return float(engine.get_global_grad_norm() or 0.0) if norm is None else norm.item()

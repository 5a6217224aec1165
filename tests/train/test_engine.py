"""DeepSpeed's configuration and the learning rate; that the methods we use of its engine exist."""

import inspect

import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from boom_ray.recipe import Train
from boom_ray.recipe.execution import TrainExecution
from boom_ray.train.engine import decay, engine_config

METHODS = {
    "backward": set(),
    "step": set(),
    "get_lr": set(),
    "get_global_grad_norm": set(),
    "set_gradient_accumulation_boundary": {"is_boundary"},
    "zero_optimization": set(),
    "fp16_enabled": set(),
    "bfloat16_enabled": set(),
    "train_batch_size": set(),
    "zero_optimization_stage": set(),
}


def test_the_engine_has_the_methods_that_training_calls():
    import deepspeed

    for name, parameters in METHODS.items():
        assert parameters <= set(inspect.signature(getattr(deepspeed.DeepSpeedEngine, name)).parameters), name


def test_the_private_api_of_deepspeed_is_where_partitions_uses_it():
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
    from deepspeed.utils.tensor_fragment import tensor_fragment

    for optimizer in (BF16_Optimizer, DeepSpeedZeroOptimizer):
        assert {"update_lp_params", "_lazy_init_hp_params_optimizer_state"} <= set(dir(optimizer))
    assert "lp_fragment_address" in tensor_fragment.__dataclass_fields__
    assert list(inspect.signature(tensor_fragment.get_hp_fragment).parameters) == ["self", "optim_state_key"]
    stage3 = DeepSpeedZeroOptimizer_Stage3
    partition = inspect.signature(stage3._get_fp32_opt_state_partition)
    assert list(partition.parameters) == ["self", "param", "release_swap_buffers", "optim_state_key"]
    own = {"checkpoint_event_prologue", "checkpoint_event_epilogue"}
    assert own | {"_reassign_or_swap_out_partitioned_parameters"} <= set(dir(stage3))


def test_the_configuration_of_deepspeed_accepts_our_keys():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    execution = TrainExecution(zero_stage=3, offload="all")
    config = engine_config(Train(precision="bf16", max_grad_norm=0.5, execution=execution), num_ranks=4)
    assert (config["train_batch_size"], config["gradient_clipping"], config["bf16"]) == (
        4,
        0.5,
        {"enabled": True, "immediate_grad_update": True},
    )
    zero = DeepSpeedZeroConfig(**config["zero_optimization"])
    assert zero.stage == 3 and zero.overlap_comm
    assert zero.offload_optimizer.device == zero.offload_param.device == "cpu"


@pytest.mark.parametrize(("num_steps", "warmup_ratio"), [(100, 0.1), (10, 0.0), (20, 0.5), (1, 0.1)])
def test_the_learning_rate_follows_the_linear_schedule_of_transformers(num_steps, warmup_ratio):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    warmup = round(num_steps * warmup_ratio)
    factor = get_linear_schedule_with_warmup(optimizer, warmup, num_steps).lr_lambdas[0]
    # transformers starts the warm-up at 0, without any effect of the first step; ours starts at 1 / warmup.
    expected = [factor(step + 1 if step < warmup else step) for step in range(num_steps + 1)]
    assert [decay(step, num_steps, warmup_ratio) for step in range(num_steps + 1)] == pytest.approx(expected)


def test_warmup_can_last_for_all_steps():
    assert [decay(step, 3, 1.0) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 0])

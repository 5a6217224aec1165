"""Parameters, FLOPs and activations, compared with torch and transformers on the same models."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, BertConfig, PreTrainedConfig, Qwen3Config

from boom_ray.planner import cost, memory
from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.shape import CONFIGS, ConfigNotFoundError, ModelShape, of_config, read
from boom_ray.recipe import Lora
from boom_ray.train import lora

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
TINY = {
    "bert": BertConfig(
        **SMALL, intermediate_size=128, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ),
    "qwen3": Qwen3Config(**SMALL, intermediate_size=96, num_key_value_heads=2, head_dim=16),
}


def shape_of(config: PreTrainedConfig, adapters: Lora | None = None) -> ModelShape:
    return of_config(config.to_dict(), adapters)


def model_of(config: PreTrainedConfig, attention: str = "eager") -> torch.nn.Module:
    config._attn_implementation = attention
    return AutoModel.from_config(config).train()


def test_parameters_of_qwen3_by_hand_and_as_on_the_hub():
    for name, hidden, inner, layers, heads, total in [
        ("0.6B", 1024, 3072, 28, 16, 596_049_920),
        ("4B", 2560, 9728, 36, 32, 4_022_468_096),
    ]:
        shape = of_config(CONFIGS[f"Qwen/Qwen3-{name}"])
        linear = layers * (hidden * 128 * (heads + 8 + 8 + heads) + 3 * hidden * inner)
        norms = layers * (2 * hidden + 2 * 128) + hidden
        assert shape.multiplying == linear
        assert shape.parameters == 151936 * hidden + linear + norms == total


def test_parameters_of_a_bert_by_hand(minilm):
    shape = read(minilm, None, None, Assumptions())
    hidden, inner, layers = 384, 1536, 6
    linear = layers * (4 * hidden * hidden + 2 * hidden * inner)
    biases = layers * (4 * hidden + inner + hidden + 4 * hidden)
    embeddings = (30522 + 512 + 2) * hidden + 2 * hidden
    assert shape.multiplying == linear and not shape.causal
    assert shape.parameters == linear + biases + embeddings + hidden * hidden + hidden


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("length", [4, 24])
def test_flops_equal_those_that_torch_counts(name, length):
    texts, shape, model = 3, shape_of(TINY[name]), model_of(TINY[name])
    ids = torch.randint(0, 100, (texts, length))
    with FlopCounterMode(display=False) as counter:
        states = model(input_ids=ids).last_hidden_state
    pooler = texts * 2 * shape.hidden**2 if name == "bert" else 0
    rope = counter.get_total_flops() - pooler - shape.forward_flops(texts * length, length)
    assert 0 <= rope <= 0.005 * counter.get_total_flops(), "only rotary embeddings are not counted"
    with FlopCounterMode(display=False) as backward:
        states.sum().backward()
    twice = 2 * shape.forward_flops(texts * length, length)
    assert backward.get_total_flops() == pytest.approx(twice, rel=0.01)


class OperationCounter(TorchDispatchMode):
    """Counts the operations that compute, so that views are left out."""

    count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        self.count += not operation.is_view and "view" not in operation.__name__
        return result


def test_operations_of_a_layer_are_those_that_torch_dispatches():
    counts = []
    for layers in (2, 4):
        config = Qwen3Config(**TINY["qwen3"].to_dict() | {"num_hidden_layers": layers, "layer_types": None})
        model = model_of(config, "sdpa")
        with OperationCounter() as forward:
            states = model(input_ids=torch.randint(0, 100, (2, 8))).last_hidden_state
        with OperationCounter() as backward:
            states.sum().backward()
        counts.append((forward.count, backward.count))
    forwards, backwards = ((more - few) / 2 for few, more in zip(*counts, strict=True))
    assert pytest.approx(forwards, rel=0.15) == cost.OPERATIONS
    assert backwards == pytest.approx(2 * forwards, rel=0.15)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_those_that_autograd_stores(name, dtype):
    shape, model = shape_of(TINY[name]), model_of(TINY[name], "sdpa").to(dtype)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    stored: dict[int, int] = {}
    tensors = []

    def store(tensor: torch.Tensor) -> torch.Tensor:
        memory_of = tensor.untyped_storage()
        if memory_of.data_ptr() not in weights and tensor.is_floating_point():
            stored[memory_of.data_ptr()] = memory_of.nbytes()
        tensors.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor):
        model(input_ids=torch.randint(0, 100, (8, 48)))
    element = torch.finfo(dtype).bits // 8
    expected = memory.activation_bytes(shape, 8 * 48, element, checkpointing=False)
    assert expected == pytest.approx(sum(stored.values()), rel=0.25)


def test_adapters_have_the_size_of_pefts():
    config, adapters = TINY["qwen3"], Lora(rank=4, targets=["q_proj", "down_proj"])
    model = model_of(config)
    lora.attach(model, adapters)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    shape = shape_of(config, adapters)
    assert shape.adapters == shape.trained == trained
    assert shape_of(config).trained == shape_of(config).parameters == shape.parameters


def test_an_unreadable_config_names_the_missing_numbers(tmp_path):
    assume = Assumptions({"model.parameters": 1e9})
    with pytest.raises(ConfigNotFoundError, match=r"config_file.*model\.multiplying") as caught:
        read("hf://nobody/nothing", None, None, assume)
    assert "model.parameters" not in str(caught.value), "overridden numbers are not missing"
    TINY["bert"].to_json_file(tmp_path / "config.json")
    found = read("hf://nobody/nothing", str(tmp_path / "config.json"), None, Assumptions())
    assert found == shape_of(TINY["bert"])

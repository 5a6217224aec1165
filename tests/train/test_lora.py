"""Adapters: the folded weights compute in plain transformers what base and adapter compute together."""

import pytest
import torch
from transformers import AutoModel, GPT2Config, GPT2Model

from boom_ray.errors import InputError
from boom_ray.recipe import Lora
from boom_ray.train.lora import attach, fold


@pytest.mark.parametrize("targets", [Lora().targets, ["q_proj", "down_proj"]])
def test_folded_weights_compute_the_states_of_base_and_adapter(qwen3, tmp_path, targets):
    model = AutoModel.from_pretrained(qwen3)
    plain = set(model.state_dict())
    attach(model, Lora(rank=4, alpha=12, targets=targets))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.05)
    folded = fold(model.state_dict(), Lora(rank=4, alpha=12))
    assert set(folded) == plain
    tokens = torch.randint(0, 1000, (3, 17))
    expected = model(tokens).last_hidden_state
    model.save_pretrained(tmp_path, state_dict=folded)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert not any("lora" in name for name in loaded.state_dict())
    assert torch.allclose(loaded(tokens).last_hidden_state, expected, rtol=1e-6, atol=1e-6)
    base = AutoModel.from_pretrained(qwen3)(tokens).last_hidden_state
    assert (expected - base).abs().max() > 1e-3


def test_targets_that_the_model_lacks_are_an_error_with_the_allowed_ones(minilm):
    with pytest.raises(InputError, match=r"train\.lora\.targets: .*q_proj.*dense, key, query, value"):
        attach(AutoModel.from_pretrained(minilm), Lora())
    with pytest.raises(InputError, match=r"targets: qury is not in the model;"):
        attach(AutoModel.from_pretrained(minilm), Lora(targets=["query", "qury"]))


def test_layers_that_are_not_linear_are_refused(bert):
    with pytest.raises(InputError, match=r"word_embeddings is of type Embedding; allowed: .*dense"):
        attach(AutoModel.from_pretrained(bert), Lora(targets=["word_embeddings"]))
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)
    for target in ("attn.c_proj", "c_attn", "all-linear"):
        with pytest.raises(InputError, match=r"train\.lora: the model has no linear layer"):
            attach(GPT2Model(config), Lora(targets=[target]))


def test_all_linear_layers_but_the_pooler(bert):
    model = AutoModel.from_pretrained(bert)
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert "pooler.dense" in linear
    attach(model, Lora(rank=2, targets=["all-linear"]))
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == linear - {"pooler.dense"}

"""The automatic size of a forward pass."""

import pytest
import torch

from boom_ray.model import directory
from boom_ray.model.encoder import Encoder
from boom_ray.recipe import Lora
from boom_ray.train import lora
from boom_ray.train.buffers import LEAST_CHUNK_TOKENS, MOST_CHUNK_TOKENS
from boom_ray.train.chunk_size import PROBES, fitting_tokens, run_pass

GIB = 1 << 30


@pytest.mark.parametrize("fixed", [0, GIB])
@pytest.mark.parametrize("per_token", [1 << 17, 1 << 20])
def test_activations_of_the_chunk_fit_the_free_memory(per_token, fixed):
    peaks = [fixed + per_token * tokens for tokens in PROBES]
    free = 60 * GIB
    tokens = fitting_tokens(peaks, free)
    assert tokens == MOST_CHUNK_TOKENS or 0.8 * free < fixed + per_token * tokens < 0.9 * free
    assert fitting_tokens(peaks, 0) == LEAST_CHUNK_TOKENS


def test_a_pass_without_measurable_growth_is_as_large_as_allowed():
    assert fitting_tokens([GIB, GIB], 60 * GIB) == MOST_CHUNK_TOKENS


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
@pytest.mark.parametrize("with_lora", [False, True])
def test_the_measured_pass_goes_through_all_layers_and_leaves_no_gradient(attention, with_lora, qwen3):
    encoder: Encoder = directory.load_encoder(qwen3, attention=attention).train()
    if with_lora:  # which freezes the embeddings of the tokens
        lora.attach(encoder.transformer, Lora(rank=2, targets=["q_proj"]))
    encoder.transformer.gradient_checkpointing_enable({"use_reentrant": False})
    hooks = dict(encoder.transformer.get_input_embeddings()._forward_hooks)
    gradient = run_pass(encoder, 100, 20)
    assert gradient.numel() == 100 * encoder.dimension
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert encoder.transformer.get_input_embeddings()._forward_hooks == hooks

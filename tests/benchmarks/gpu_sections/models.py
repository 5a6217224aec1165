"""Directories of Qwen3 models with random bfloat16 weights, which all tools load."""

import os
from typing import Any

import torch
from torch import nn

from boom_ray.model import directory, tokenizer
from boom_ray.model.encoder import Encoder
from boom_ray.model.spec import EncoderSpec
from boom_ray.recipe import BaseModelSource
from tests import base_models
from tests.benchmarks.gpu_sections.bench import Bench

LONGEST = 512  # tokens
COMMON = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True}
SHAPES: dict[str, dict[str, Any]] = {
    "0.6B": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        **COMMON,
    },
    "4B": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        **COMMON,
    },
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        **COMMON,
        "head_dim": 64,
        "vocab_size": 1000,
    },
}


def base_model(bench: Bench, shape: str) -> str:
    """The directory of a model; the first section that needs it writes it."""
    path = bench.path("models", shape)
    if not os.path.isdir(path):
        with torch.device(bench.device):
            base_models.build_qwen3(
                f"{path}.part", bench.sized(SHAPES[shape], base_models.TINY_QWEN3), torch.bfloat16
            )
        spec = EncoderSpec("lasttoken", LONGEST)  # so that all tools append the same end token
        tokenizer.save(tokenizer.load(f"{path}.part", spec), f"{path}.part")
        os.rename(f"{path}.part", path)
    return path


def source(bench: Bench, shape: str) -> BaseModelSource:
    """The same as a recipe names it."""
    return BaseModelSource(path=base_model(bench, shape), pooling="lasttoken", max_length=LONGEST)


def encoder(bench: Bench, shape: str) -> Encoder:
    """Our encoder for inference, as `embed` and `serve` load it."""
    found = source(bench, shape)
    made = directory.load_encoder(found.path, found, device=bench.device, dtype=torch.bfloat16)
    return made.for_inference()


def flops_per_token(transformer: nn.Module) -> int:
    """Operations of a forward pass per token: two per weight of a matrix product, none for attention scores.

    A backward pass has twice as many (arXiv 2001.08361, §2.1).
    """
    embeddings = sum(part.weight.numel() for part in transformer.modules() if isinstance(part, nn.Embedding))
    return 2 * (sum(weight.numel() for weight in transformer.parameters()) - embeddings)

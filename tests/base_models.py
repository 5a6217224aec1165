"""Base models with random weights as a hub holds them, and models published without training."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from boom_ray.artifacts import ModelRecord, staging
from boom_ray.artifacts.contents import ModelConfig
from boom_ray.model import directory, self_test
from boom_ray.recipe import BaseModelSource
from tests import texts

TINY_QWEN3: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
}


def build_qwen3(path: str, shape: dict[str, Any] = TINY_QWEN3, dtype: torch.dtype = torch.float32) -> str:
    """Save a Qwen3 with random weights, made on torch's default device."""
    build_qwen3_tokenizer(path)
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**shape)).to(dtype).save_pretrained(path)
    return path


def build_qwen3_tokenizer(path: str) -> None:
    """A byte-level tokenizer of the standard library's text, with Qwen3's end and padding tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" ".join(pair) for pair in texts.functions("email")), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    ).save_pretrained(path)


def publish(
    base: str,
    target: str,
    version: str = "v0001",
    max_length: int = 128,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Publish a base model as it is, in the form every model of ours has."""
    encoder = directory.load_encoder(base, BaseModelSource(path=base), dtype=dtype)
    prompts = {"query": "Instruct: find the code\nQuery:", "document": ""}
    with staging.staged(target) as stage:
        directory.save(encoder, stage.local, base, prompts, max_length)
        config = ModelConfig(rows=10)
        made = ModelRecord(name="test", version=version, fingerprint="0", config=config)
        stage.commit(made.model_copy(update={"self_test": self_test.compute(stage.local)}))
    return target

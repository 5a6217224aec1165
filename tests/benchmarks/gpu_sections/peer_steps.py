"""Whole training steps of other libraries on the same rows, with AdamW on bfloat16 weights.

Their batches are tokenized and on the device beforehand. Of the settings with which a user fits a batch into
memory, the fastest counts.
"""

import contextlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from sentence_transformers.sentence_transformer import losses
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from tests.benchmarks.gpu_sections.clock import Work, forget, seconds_of
from tests.benchmarks.gpu_sections.peer_encoder import attention, sentence_transformer
from tests.benchmarks.gpu_sections.samples import Row

TEMPERATURE = 0.02
MINI_BATCHES = (32, 64)
FLAG_EMBEDDING = "FlagEmbedding.finetune.embedder.decoder_only.base.modeling"


class PeerSteps:
    """Steps of one model with different losses.

    Args:
        model: Everything that is trained.
        transformer: The part whose activations can be recomputed.
    """

    def __init__(self, model: nn.Module, transformer: PreTrainedModel) -> None:
        self.model, self.transformer = model.train(), transformer
        fused = next(model.parameters()).is_cuda
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=fused)

    def step(self, loss: Callable[[], Tensor], checkpointing: bool) -> Work:
        """A step that minimizes a loss, with or without gradient checkpointing."""

        def run() -> None:
            if checkpointing:
                self.transformer.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                self.transformer.gradient_checkpointing_disable()
            loss().backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()

        return run


def sentence_transformers_steps(base: str, device: str, rows: Sequence[Row], longest: int) -> dict[str, Work]:
    """Steps of sentence-transformers by setting."""
    model = sentence_transformer(base, device, longest)
    steps = PeerSteps(model, model[0].model)
    columns = [[row.query for row in rows], *zip(*(row.passages for row in rows), strict=True)]
    prepared = [_on(device, model.preprocess(list(column))) for column in columns]

    def of(loss: nn.Module, checkpointing: bool) -> Work:
        # Modules add their outputs to the features of a batch.
        return steps.step(lambda: loss([dict(features) for features in prepared], None), checkpointing)

    scale = 1 / TEMPERATURE
    cached = losses.CachedMultipleNegativesRankingLoss
    found = {
        f"mini-batches of {size}": of(cached(model, scale=scale, mini_batch_size=size), False)
        for size in MINI_BATCHES
    }
    plain = losses.MultipleNegativesRankingLoss(model, scale=scale)
    return found | {"gradient checkpointing": of(plain, True)}


def flag_embedding_steps(base: str, device: str, rows: Sequence[Row], longest: int) -> dict[str, Work]:
    """The step of FlagEmbedding, which cannot be imported with every version of transformers.

    Raises:
        Exception: of any kind, from the import.
    """
    model_class = importlib.import_module(FLAG_EMBEDDING).BiDecoderOnlyEmbedderModel
    tokenizer = AutoTokenizer.from_pretrained(base)
    transformer = AutoModel.from_pretrained(base, dtype=torch.bfloat16, attn_implementation=attention(device))
    model = model_class(transformer, tokenizer, temperature=TEMPERATURE, normalize_embeddings=True)
    steps = PeerSteps(model.to(device), transformer)

    def padded(texts: list[str]) -> dict[str, Any]:
        options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
        return _on(device, tokenizer(texts, **options))

    queries = padded([row.query for row in rows])
    passages = padded([text for row in rows for text in row.passages])
    loss = lambda: model(queries=queries, passages=passages).loss  # noqa: E731
    return {"gradient checkpointing": steps.step(loss, True)}


def _on(device: str, features: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.to(device) if isinstance(value, Tensor) else value for name, value in features.items()
    }


def fastest(steps: Mapping[str, Work]) -> tuple[str, Work]:
    """The setting whose second step is the shortest; those that run out of memory do not count.

    Raises:
        torch.OutOfMemoryError: if all of them do.
    """
    seconds: dict[str, float] = {}
    for name, step in steps.items():
        with contextlib.suppress(torch.OutOfMemoryError):
            step()
            seconds[name] = seconds_of(step)
        forget()
    if not seconds:
        raise torch.OutOfMemoryError("no setting of the peer fits into the memory of the device")
    name = min(seconds, key=seconds.__getitem__)
    return name, steps[name]

"""The encoder: from texts to unit vectors.

A transformer without a head, pooling, and L2 normalization, for training, evaluation, embedding and serving.
A batch is padded, or packed into one sequence (`padded_layout`, `packed_layout`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from boom_ray.errors import InputError
from boom_ray.model import tokenizer as tokenizers
from boom_ray.model.adapted import load_adapted
from boom_ray.model.packed_layout import PackedLayout
from boom_ray.model.packed_weights import pack_linear_layers
from boom_ray.model.packing import pack
from boom_ray.model.padded_layout import MIN_CHUNK_TOKENS, MIN_CHUNK_TOKENS_ON_GPU, PaddedLayout
from boom_ray.model.spec import EncoderSpec
from boom_ray.model.tokens import Tokens
from boom_ray.recipe.execution import Attention

CHUNK_TOKENS, CHUNK_TOKENS_ON_GPU = 8192, 65536  # in a forward pass; CPUs compute out of caches
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Encoder(nn.Module):
    """A transformer with pooling and normalization.

    Attributes:
        transformer: The `transformers` model, without a language modelling head.
        tokenizer: Appends the end token if the pooling needs it.
        spec: Pooling, maximum length and prompts.
        layout: How the texts of a batch are arranged; padded unless `packing` has packed it.
    """

    layout: PaddedLayout | PackedLayout

    def __init__(
        self, transformer: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: EncoderSpec
    ) -> None:
        super().__init__()
        tokenizers.prepare(tokenizer, spec)
        self.transformer, self.tokenizer, self.spec = transformer, tokenizer, spec
        causal = any(getattr(module, "is_causal", False) for module in transformer.modules())
        min_chunk_tokens = MIN_CHUNK_TOKENS_ON_GPU if self.device.type == "cuda" else MIN_CHUNK_TOKENS
        self.layout = PaddedLayout(spec.pooling, tokenizer.pad_token_id or 0, causal, min_chunk_tokens)

    @classmethod
    def load(
        cls,
        directory: str,
        spec: EncoderSpec,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        attention: Attention = "auto",
    ) -> "Encoder":
        """Load from a local directory: safetensors only, and no code from the directory.

        Args:
            attention: Implementation of attention; see `boom_ray.model.packing`.

        Raises:
            InputError: if transformer or tokenizer are of a kind that cannot be used.
            OSError: if the directory has no safetensors weights.
        """
        transformer: Any = load_adapted(directory, dtype, attention)
        encoder = cls(transformer.to(device), tokenizers.load(directory, spec), spec).eval()
        pack(encoder, attention)
        return encoder

    def for_inference(self) -> "Encoder":
        """Speed up this encoder on a CPU, in place; it can no longer be trained or saved."""
        if self.device.type == "cpu":
            pack_linear_layers(self.transformer)
        return self

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.transformer.parameters()).device

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a forward pass that suit the device; embeddings depend on it by rounding only."""
        return CHUNK_TOKENS_ON_GPU if self.device.type == "cuda" else CHUNK_TOKENS

    @property
    def dimension(self) -> int:
        """Length of the embeddings; configurations name it differently, and transformers maps the names."""
        return int(self.transformer.config.hidden_size)

    def tokenize(self, texts: Sequence[str], max_length: int | None = None, prompt: str = "") -> Tokens:
        """Token ids of each text behind the prompt; see `boom_ray.model.tokenizer.tokenize`."""
        return tokenizers.tokenize(self.tokenizer, self.spec, texts, prompt, max_length)

    def skipped_tokens(self, prompt: str, max_length: int | None = None) -> int:
        """Number of the first tokens of texts behind a prompt that are not pooled."""
        limit = min(max_length or self.spec.max_length, self.spec.max_length)
        return tokenizers.skipped_tokens(self.tokenizer, self.spec, prompt, limit)

    def collate(self, tokens: Tokens) -> tuple[Tensor | int, ...]:
        """One batch of texts, on the device of the model: the arguments of `forward`.

        Raises:
            InputError: if all tokens of a text are skipped.
        """
        if np.any((tokens.skipped > 0) & (tokens.skipped >= tokens.lengths)):
            raise InputError(
                f"a prompt has {tokens.skipped.max()} tokens, which leaves none of its text to be pooled "
                "(include_prompt is false). Shorten the prompt, or raise the maximum length"
            )
        device = self.device
        parts = self.layout.collate(tokens)
        if device.type != "cuda":
            return parts
        # From pinned memory, copies do not wait for the passes that are already queued.
        return tuple(
            part.pin_memory().to(device, non_blocking=True) if isinstance(part, Tensor) else part
            for part in parts
        )

    def forward(self, *batch: Any) -> Tensor:
        """Embed a batch; see `collate`.

        Returns:
            [n, d] float32, each row of norm 1.
        """
        return nn.functional.normalize(self.pooled(*batch), dim=-1)

    def pooled(self, *batch: Any) -> Tensor:
        """The same before normalization: [n, d] float32."""
        return self.layout.pooled(self.transformer, *batch).float()

    @torch.inference_mode()
    def encode_tokens(
        self, tokens: Tokens, chunk_tokens: int | None = None, normalize: bool = True
    ) -> np.ndarray:
        """Embed tokenized texts.

        A GPU computes a chunk while the next one is collated; vectors are fetched one chunk behind.

        Args:
            chunk_tokens: Maximum of tokens in one forward pass, padding included; by default as suits the
                device.
            normalize: Whether each row gets norm 1.

        Returns:
            [n, d] float32 in the order of `tokens`; a text without tokens is zeros.
        """
        embed = self if normalize else self.pooled
        vectors = np.zeros((len(tokens), self.dimension), dtype=np.float32)
        (filled,) = np.nonzero(tokens.lengths)
        computing: tuple[np.ndarray, PendingCopy] | None = None
        for chunk in self.layout.chunks(tokens.lengths[filled], chunk_tokens or self.chunk_tokens):
            texts = filled[chunk]
            started = texts, PendingCopy(embed(*self.collate(tokens[texts])))
            if computing:
                vectors[computing[0]] = computing[1].result()
            computing = started
        if computing:
            vectors[computing[0]] = computing[1].result()
        return vectors

    def encode(self, texts: Sequence[str], prompt: str = "") -> np.ndarray:
        """Embed texts.

        Args:
            texts: n texts, truncated at the maximum length of the model.
            prompt: Prefix of every text.

        Returns:
            [n, d] float32, each row of norm 1.
        """
        return self.encode_tokens(self.tokenize(texts, prompt=prompt))


class PendingCopy:
    """Values on their way from a device to the CPU, which the caller does not wait for yet."""

    def __init__(self, values: Tensor) -> None:
        self.values = values.to("cpu", non_blocking=True)  # into pinned memory
        self.event = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    def result(self) -> np.ndarray:
        """The values, once they are complete."""
        if self.event:
            self.event.synchronize()
        return self.values.numpy()

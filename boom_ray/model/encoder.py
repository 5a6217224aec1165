"""The encoder: from texts to unit vectors.

A transformer without a head, pooling, and L2 normalization, for training, evaluation, embedding and serving.
Batches are padded on the right. With causal attention no token attends to the padding after it, so that such
a batch needs no attention mask, and the fast attention kernels apply.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from boom_ray.errors import InputError
from boom_ray.model import tokenizer as tokenizers
from boom_ray.model.packed_weights import pack_linear_layers
from boom_ray.model.spec import EncoderSpec
from boom_ray.model.tokenizer import TokenIds
from boom_ray.model.transformer import load_transformer
from boom_ray.recipe import Attention, Pooling

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
MIN_CHUNK_TOKENS = 512  # smaller forward passes do not use the processor fully


def pool(states: Tensor, lengths: Tensor, skipped: Tensor, pooling: Pooling) -> Tensor:
    """Reduce token states to one vector per text, by length and not by token id: Qwen's pad is its EOS.

    Args:
        states: [n, length, d], padded on the right.
        lengths: [n] int64, number of tokens of each text.
        skipped: [n] int64, number of first tokens that are not pooled, less than `lengths`.

    Returns:
        [n, d], in the dtype of `states` (`mean` sums in float32).
    """
    rows = torch.arange(len(states), device=states.device)
    if pooling == "cls":
        return states[rows, skipped]
    if pooling == "lasttoken":
        return states[rows, lengths - 1]
    positions = torch.arange(states.shape[1], device=states.device)
    mask = (positions >= skipped[:, None]) & (positions < lengths[:, None])
    # As in sentence-transformers, the mean of no tokens is zero.
    counts = (lengths - skipped).clamp(min=1)[:, None]
    return (states * mask[..., None]).sum(1, dtype=torch.float32) / counts


class Encoder(nn.Module):
    """A transformer with pooling and normalization.

    Attributes:
        transformer: The `transformers` model, without a language modelling head.
        tokenizer: Appends the end token if the pooling needs it.
        spec: Pooling, maximum length and prompts.
        causal: Whether tokens attend only to earlier ones, so that padding on the right needs no mask.
        packed: Whether all texts of a batch run as one sequence without padding (causal models only).
    """

    def __init__(
        self, transformer: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: EncoderSpec
    ) -> None:
        super().__init__()
        tokenizers.prepare(tokenizer, spec)
        self.transformer, self.tokenizer, self.spec = transformer, tokenizer, spec
        self.causal = any(getattr(module, "is_causal", False) for module in transformer.modules())
        self.packed = False

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
            attention: Implementation of attention; with `flash_attention_2`, causal models run packed.

        Raises:
            InputError: if transformer or tokenizer are of a kind that cannot be used.
            OSError: if the directory has no safetensors weights.
        """
        transformer = load_transformer(directory, dtype, attention)
        encoder = cls(transformer, tokenizers.load(directory, spec), spec).to(device).eval()
        encoder.packed = encoder.causal and attention == "flash_attention_2"
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
    def dimension(self) -> int:
        """Length of the embeddings; configurations name it differently, and transformers maps the names."""
        return int(self.transformer.config.hidden_size)

    def tokenize(
        self, texts: Sequence[str], max_length: int | None = None, prompt: str = ""
    ) -> list[TokenIds]:
        """Token ids of each text behind the prompt; see `boom_ray.model.tokenizer.tokenize`."""
        return tokenizers.tokenize(self.tokenizer, self.spec, texts, prompt, max_length)

    def skipped_tokens(self, prompt: str, max_length: int | None = None) -> int:
        """Number of the first tokens of texts behind a prompt that are not pooled."""
        limit = min(max_length or self.spec.max_length, self.spec.max_length)
        return tokenizers.skipped_tokens(self.tokenizer, self.spec, prompt, limit)

    def pad(self, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Stack texts into one batch, padded on the right.

        Args:
            token_ids: Of each text; tokens that `TokenIds` skip are not pooled.

        Returns:
            Token ids [n, longest], lengths [n] and numbers of skipped tokens [n], int64, on the device of the
            model.

        Raises:
            InputError: if all tokens of a text are skipped.
        """
        lengths = torch.tensor([len(ids) for ids in token_ids])
        skipped = torch.tensor([ids.skipped if isinstance(ids, TokenIds) else 0 for ids in token_ids])
        if bool(((skipped > 0) & (skipped >= lengths)).any()):
            raise InputError(
                f"a prompt has {int(skipped.max())} tokens, which leaves none of its text to be pooled "
                "(include_prompt is false). Shorten the prompt, or raise the maximum length"
            )
        batch = torch.full((len(token_ids), int(lengths.max())), self.tokenizer.pad_token_id or 0)
        for row, ids in zip(batch, token_ids, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return batch.to(self.device), lengths.to(self.device), skipped.to(self.device)

    def forward(self, input_ids: Tensor, lengths: Tensor, skipped: Tensor) -> Tensor:
        """Embed a batch that is padded on the right; see `pad`.

        Args:
            input_ids: [n, length] int64.
            lengths: [n] int64.
            skipped: [n] int64.

        Returns:
            [n, d] float32, each row of norm 1.
        """
        return nn.functional.normalize(self.pooled(input_ids, lengths, skipped), dim=-1)

    def pooled(self, input_ids: Tensor, lengths: Tensor, skipped: Tensor) -> Tensor:
        """The same before normalization: [n, d] float32."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        real = positions < lengths[:, None]
        if self.packed:
            states = self._packed_states(input_ids, real)
        elif self.causal:
            states = self.transformer(input_ids=input_ids, use_cache=False).last_hidden_state
        else:
            mask = real.long()
            states = self.transformer(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return pool(states, lengths, skipped, self.spec.pooling).float()

    def _packed_states(self, input_ids: Tensor, real: Tensor) -> Tensor:
        """Token states, padded, from one sequence of all texts.

        transformers separates the texts of a packed sequence where its position ids restart at 0.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        output = self.transformer(
            input_ids=input_ids[real][None], position_ids=positions[real][None], use_cache=False
        )
        states = output.last_hidden_state[0]
        return states.new_zeros(*input_ids.shape, states.shape[1]).index_put((real,), states)

    @torch.inference_mode()
    def encode_tokens(
        self, token_ids: Sequence[Sequence[int]], chunk_tokens: int = 8192, normalize: bool = True
    ) -> np.ndarray:
        """Embed tokenized texts, longest first, at most `chunk_tokens` padded tokens per forward pass.

        Returns:
            [n, d] float32 in the order of `token_ids`, each row of norm 1 unless `normalize` is off; a text
            without tokens is zeros.
        """
        embed = self if normalize else self.pooled
        vectors = np.zeros((len(token_ids), self.dimension), dtype=np.float32)
        filled = np.array([index for index, ids in enumerate(token_ids) if len(ids)], dtype=np.int64)
        lengths = np.array([len(token_ids[index]) for index in filled], dtype=np.int64)
        for chunk in chunk_by_tokens(lengths, chunk_tokens):
            texts = filled[chunk]
            vectors[texts] = embed(*self.pad([token_ids[index] for index in texts])).cpu().numpy()
        return vectors

    def encode(self, texts: Sequence[str], prompt: str = "", chunk_tokens: int = 8192) -> np.ndarray:
        """Embed texts.

        Args:
            texts: n texts, truncated at the maximum length of the model.
            prompt: Prefix of every text.
            chunk_tokens: Maximum of padded tokens in one forward pass.

        Returns:
            [n, d] float32, each row of norm 1.
        """
        return self.encode_tokens(self.tokenize(texts, prompt=prompt), chunk_tokens)


def chunk_by_tokens(lengths: np.ndarray, chunk_tokens: int) -> list[np.ndarray]:
    """Cut texts, longest first, into chunks of at most `chunk_tokens` padded tokens (at least one text each).

    A chunk ends early if it has `MIN_CHUNK_TOKENS` and padding would exceed an eighth of the next text.

    Args:
        lengths: [n] tokens of each text.

    Returns:
        Index arrays that together contain each of 0..n-1 once.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = np.maximum(lengths[order], 1)
    chunks, start = [], 0
    while start < len(order):
        longest = int(ordered[start])
        fitting = max(1, chunk_tokens // longest)
        similar = int(np.count_nonzero(ordered[start : start + fitting] * 8 >= longest * 7))
        rows = min(fitting, max(similar, -(-MIN_CHUNK_TOKENS // longest)))
        chunks.append(order[start : start + rows])
        start += rows
    return chunks

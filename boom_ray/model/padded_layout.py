"""Batches of texts that are padded to the longest of them, on the right.

With causal attention no token attends to the padding after it, so that such a batch needs no attention mask,
and the fast attention kernels apply.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from boom_ray.model.tokens import Tokens
from boom_ray.recipe import Pooling

MIN_CHUNK_TOKENS, MIN_CHUNK_TOKENS_ON_GPU = 512, 8192  # smaller passes do not use the processor fully


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


@dataclass(frozen=True)
class PaddedLayout:
    """Texts as the rows of a matrix.

    Attributes:
        pooling: Reduction of token states to one vector.
        pad: Token id of the padding.
        causal: Whether tokens attend to earlier ones only.
        min_chunk_tokens: Tokens below which a chunk is not cut to save padding.
    """

    pooling: Pooling
    pad: int
    causal: bool
    min_chunk_tokens: int = MIN_CHUNK_TOKENS

    def chunks(self, lengths: np.ndarray, chunk_tokens: int) -> list[np.ndarray]:
        """Cut texts into chunks of similar lengths; see `chunk_by_padded_tokens`."""
        return chunk_by_padded_tokens(lengths, chunk_tokens, self.min_chunk_tokens)

    def chunk_sizes(self, lengths: np.ndarray, chunks: Sequence[np.ndarray]) -> list[int]:
        """Number of tokens of each chunk, padding included."""
        return [len(chunk) * int(lengths[chunk].max(initial=0)) for chunk in chunks]

    def collate(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments of `pooled`: token ids [n, longest], lengths [n], and skipped tokens [n], int64."""
        longest = int(tokens.lengths.max())
        real = np.arange(longest) < tokens.lengths[:, None]
        ids = np.full(real.shape, self.pad, dtype=np.int64)
        ids[real] = tokens.ids
        return torch.from_numpy(ids), torch.from_numpy(tokens.lengths), torch.from_numpy(tokens.skipped)

    def pooled(
        self, transformer: PreTrainedModel, input_ids: Tensor, lengths: Tensor, skipped: Tensor
    ) -> Tensor:
        """[n, d] of a batch."""
        if self.causal:
            states = transformer(input_ids=input_ids, use_cache=False).last_hidden_state
        else:
            mask = (torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]).long()
            states = transformer(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return pool(states, lengths, skipped, self.pooling)


def chunk_by_padded_tokens(
    lengths: np.ndarray, chunk_tokens: int, min_chunk_tokens: int = MIN_CHUNK_TOKENS
) -> list[np.ndarray]:
    """Cut texts, longest first, into chunks of at most `chunk_tokens` padded tokens (at least one text each).

    A chunk ends early if it has `min_chunk_tokens` and padding would exceed an eighth of the next text.

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
        rows = min(fitting, max(similar, -(-min_chunk_tokens // longest)))
        chunks.append(order[start : start + rows])
        start += rows
    return chunks

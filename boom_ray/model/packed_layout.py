"""Batches of texts one after another in a single sequence: no padding, and few large forward passes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from boom_ray.model.tokens import Tokens
from boom_ray.recipe import Pooling


def pool_packed(states: Tensor, starts: Tensor, lengths: Tensor, skipped: Tensor, pooling: Pooling) -> Tensor:
    """Reduce token states to one vector per text; see `boom_ray.model.padded_layout.pool`.

    Args:
        states: [T, d] of all texts.
        starts: [n] int64, position of the first token of each text.
        lengths: [n] int64, number of tokens of each text.
        skipped: [n] int64, number of first tokens that are not pooled.

    Returns:
        [n, d], in the dtype of `states` (`mean` is float32).
    """
    if pooling == "cls":
        return states[starts + skipped]
    if pooling == "lasttoken":
        return states[starts + lengths - 1]
    # Each text is two segments, of which the second is pooled. `unsafe` skips a check of the lengths, which
    # would wait for the device.
    segments = torch.stack([skipped, lengths - skipped], dim=1)
    sums = torch.segment_reduce(states.float(), "sum", lengths=segments.flatten(), unsafe=True, initial=0)
    return sums[1::2] / segments[:, 1:].clamp(min=1)


@dataclass(frozen=True)
class PackedLayout:
    """Texts as one sequence, whose bounds go to the attention.

    Attributes:
        pooling: Reduction of token states to one vector.
        first_position: Position id of the first token of a text; RoBERTa counts from behind its padding id.
        causal: Whether tokens attend to earlier ones only.
    """

    pooling: Pooling
    first_position: int
    causal: bool

    def chunks(self, lengths: np.ndarray, chunk_tokens: int) -> list[np.ndarray]:
        """Cut texts into the fewest chunks; see `chunk_by_tokens`."""
        return chunk_by_tokens(lengths, chunk_tokens)

    def chunk_sizes(self, lengths: np.ndarray, chunks: Sequence[np.ndarray]) -> list[int]:
        """Number of tokens of each chunk, none of which is padding."""
        return [int(lengths[chunk].sum()) for chunk in chunks]

    def collate(self, tokens: Tokens) -> tuple[Tensor | int, ...]:
        """The arguments of `pooled`."""
        starts = np.cumsum(tokens.lengths) - tokens.lengths
        positions = np.arange(len(tokens.ids)) - np.repeat(starts - self.first_position, tokens.lengths)
        bounds = np.append(starts, len(tokens.ids)).astype(np.int32)
        arrays = tokens.ids.astype(np.int64)[None], positions[None], bounds, tokens.lengths, tokens.skipped
        return *map(torch.from_numpy, arrays), int(tokens.lengths.max())

    def pooled(
        self,
        transformer: PreTrainedModel,
        input_ids: Tensor,
        positions: Tensor,
        bounds: Tensor,
        lengths: Tensor,
        skipped: Tensor,
        longest: int,
    ) -> Tensor:
        """Embed a batch, without a step that waits for the device.

        Args:
            input_ids: [1, T] int64.
            positions: [1, T] int64, position ids, which start again in each text.
            bounds: [n + 1] int32, start of each text, and T.
            lengths: [n] int64.
            skipped: [n] int64.
            longest: Maximum of `lengths`.

        Returns:
            [n, d].
        """
        cache = {"use_cache": False} if self.causal else {}
        output = transformer(
            input_ids=input_ids,
            position_ids=positions,
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=longest,
            max_length_k=longest,
            **cache,
        )
        return pool_packed(output.last_hidden_state[0], bounds[:-1].long(), lengths, skipped, self.pooling)


def snake(num_items: int, num_hands: int) -> np.ndarray:
    """[num_items] int64, whose turn it is when cards are dealt back and forth: 0 1 2 2 1 0 0 1 2 …"""
    turn = np.arange(num_items) % (2 * num_hands)
    return np.minimum(turn, 2 * num_hands - 1 - turn)


def chunk_by_tokens(lengths: np.ndarray, chunk_tokens: int) -> list[np.ndarray]:
    """Deal texts, longest first, to the fewest chunks of at most `chunk_tokens` tokens, all about as large.

    A text that is longer than `chunk_tokens` counts as that many.

    Args:
        lengths: [n] tokens of each text.

    Returns:
        Index arrays that together contain each of 0..n-1 once.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = np.minimum(lengths[order], chunk_tokens)
    num_chunks = max(1, -(-int(ordered.sum()) // chunk_tokens))
    while True:
        chunk_of = snake(len(order), num_chunks)
        if np.bincount(chunk_of, ordered, minlength=num_chunks).max() <= chunk_tokens:
            return [order[chunk_of == chunk] for chunk in range(num_chunks) if chunk < len(order)]
        num_chunks += 1

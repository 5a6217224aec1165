"""The share of one rank in a global batch: its texts, their chunks, and the counts that ranks exchange."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from boom_ray.model.packed_layout import PackedLayout, snake
from boom_ray.model.padded_layout import PaddedLayout

Chunk = np.ndarray
Layout = PaddedLayout | PackedLayout
UNLIMITED = np.iinfo(np.int32).max


class Counts(NamedTuple):
    """Counts of one rank's share in a step, or of all of them.

    Attributes:
        chunks: Chunks; all ranks need as many as any.
        kept: First chunks whose activations fit; `UNLIMITED` if all do.
        tokens: Tokens of the texts.
        computed: The same with padding.
        truncated: Texts that reach their maximum length.
        waited: Microseconds that the step waited for the share.
        clock: Milliseconds since the rank was ready to train.
    """

    chunks: int
    kept: int
    tokens: int
    computed: int
    truncated: int
    waited: int
    clock: int

    @classmethod
    def of_all(cls, counts: np.ndarray) -> "Counts":
        """The counts of all ranks together.

        Args:
            counts: [num_ranks, 7] int64, those of each.
        """
        chunks, kept, tokens, computed, truncated, waited, clock = counts.T
        return cls(
            chunks=int(chunks.max()),
            kept=int(kept.min()),
            tokens=int(tokens.sum()),
            computed=int(computed.sum()),
            truncated=int(truncated.sum()),
            waited=int(waited.max()),
            clock=int(clock.max()),
        )


def sizes_of(texts: Sequence[str]) -> np.ndarray:
    """[n] int64, bytes of each text in UTF-8."""
    return np.array([len(text.encode()) for text in texts])


def deal(sizes: np.ndarray, rank: int, num_ranks: int) -> np.ndarray:
    """The texts of one rank, which are about as many tokens as those of any other.

    Args:
        sizes: [n] bytes of each text (`sizes_of`), which are known before any is tokenized.

    Returns:
        [m] int64, sorted indices; those of all ranks together contain each of 0..n-1 once.
    """
    order = np.argsort(-sizes, kind="stable")
    return np.sort(order[snake(len(sizes), num_ranks) == rank])


def share_chunks(layout: Layout, lengths: np.ndarray, chunk_tokens: int) -> tuple[list[Chunk], Counts]:
    """Cut the texts of one rank into chunks.

    Args:
        lengths: [m] tokens of each text.
        chunk_tokens: Most tokens of a chunk, and of all chunks whose activations are kept.

    Returns:
        The chunks, as indices into the rank's texts, and their counts; none is truncated or waited for.
    """
    chunks = layout.chunks(lengths, chunk_tokens)
    sizes = layout.chunk_sizes(lengths, chunks)
    kept = num_kept(sizes, chunk_tokens)
    return chunks, Counts(len(chunks), kept, int(lengths.sum()), sum(sizes), truncated=0, waited=0, clock=0)


def num_kept(sizes: Sequence[int], chunk_tokens: int) -> int:
    """Number of first chunks that together have at most `chunk_tokens` tokens, at least one.

    Args:
        sizes: Tokens of each chunk, padding included.

    Returns:
        `UNLIMITED` if all of them do.
    """
    fitting = int((np.cumsum(sizes) <= chunk_tokens).sum())
    return UNLIMITED if fitting == len(sizes) else max(1, fitting)


def split(chunks: Sequence[Chunk], num_chunks: int) -> list[Chunk]:
    """As many chunks as every other rank has, none larger than before.

    ZeRO-3 gathers parameters in every forward pass, and a rank with fewer passes would block the others.

    Args:
        num_chunks: At least their number. The chunk with the most texts is halved, or an empty one appended
            if none has two.
    """
    chunks = list(chunks)
    while len(chunks) < num_chunks:
        largest = max(range(len(chunks)), key=lambda index: len(chunks[index]), default=None)
        if largest is None or len(chunks[largest]) < 2:
            chunks.append(np.empty(0, dtype=np.int64))
        else:
            chunks[largest : largest + 1] = np.array_split(chunks[largest], 2)
    return chunks

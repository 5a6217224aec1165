"""The forward and backward passes of a step: what the training step makes of the texts of a global batch.

The texts are dealt to ranks and cut into chunks by the functions of `boom_ray.train.share`, which the step
itself calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from boom_ray.recipe import Train

if TYPE_CHECKING:
    from boom_ray.train.share import Layout

MOST_RANKS = 16  # of a bag whose shares are cut: shares are so even that the others do not matter


@dataclass(frozen=True, eq=False)
class SampledBatch:
    """The distinct texts of one global batch.

    Attributes:
        lengths: [n] int64 tokens, truncated at their maximum length.
        sizes: [n] int64 bytes in UTF-8.
    """

    lengths: np.ndarray
    sizes: np.ndarray


class Work(NamedTuple):
    """What the FLOPs of a pass are linear in.

    Attributes:
        tokens: Tokens of all texts, padding included.
        squares: Sum of the squares of their lengths, padding included.
    """

    tokens: float
    squares: float


class RankPasses(NamedTuple):
    """The work of one rank in a step.

    Attributes:
        all: One pass over its share.
        repeated: One pass over the chunks whose activations are not kept, which are embedded twice.
        size: Bytes of its texts in UTF-8.
    """

    all: Work
    repeated: Work
    size: float


@dataclass(frozen=True)
class StepPasses:
    """The passes of all ranks in a step.

    Attributes:
        ranks: Those of a rank, for up to `MOST_RANKS` of them.
        num_chunks: Chunks of every rank.
        num_repeated: How many of them are embedded twice.
    """

    ranks: list[RankPasses]
    num_chunks: int
    num_repeated: int


def layout_of(train: Train) -> "Layout":
    """The layout of the batches of training: packed where it is expected, see `boom_ray.model.packing`."""
    execution = train.execution
    automatic = execution.attention == "auto" and execution.use_gpu and train.precision != "fp32"
    return layout(automatic or execution.attention in ("varlen", "flash_attention_2"), execution.use_gpu)


def layout(packed: bool, on_gpu: bool) -> "Layout":
    """The layout of packed or padded batches; only its chunks are used, which no pooling changes."""
    from boom_ray.model.packed_layout import PackedLayout
    from boom_ray.model.padded_layout import MIN_CHUNK_TOKENS, MIN_CHUNK_TOKENS_ON_GPU, PaddedLayout

    if packed:
        return PackedLayout("mean", 0, causal=False)
    return PaddedLayout("mean", 0, False, MIN_CHUNK_TOKENS_ON_GPU if on_gpu else MIN_CHUNK_TOKENS)


def work_of(layout: "Layout", lengths: np.ndarray, chunks: Sequence[np.ndarray]) -> Work:
    """The work of one pass over some chunks.

    Args:
        lengths: [n] int64 tokens of each text.
        chunks: Indices into them.
    """
    tokens = squares = 0
    for chunk, size in zip(chunks, layout.chunk_sizes(lengths, chunks), strict=True):
        own = lengths[chunk]
        is_padded = size > own.sum()
        tokens += size
        squares += size * int(own.max()) if is_padded else int((own**2).sum())
    return Work(tokens, squares)


@lru_cache(maxsize=4096)
def step_passes(batch: SampledBatch, layout: "Layout", chunk_tokens: int, num_ranks: int) -> StepPasses:
    """The passes of a step over a global batch."""
    from boom_ray.train.share import Counts, deal, share_chunks, split

    ranks = np.unique(np.linspace(0, num_ranks - 1, min(num_ranks, MOST_RANKS)).astype(int)).tolist()
    texts = [deal(batch.sizes, rank, num_ranks) for rank in ranks]
    cut = [share_chunks(layout, batch.lengths[own], chunk_tokens) for own in texts]
    counts = Counts.of_all(np.array([own for _, own in cut]))
    passes = []
    for own, (chunks, _) in zip(texts, cut, strict=True):
        equal, lengths = split(chunks, counts.chunks), batch.lengths[own]
        passes.append(
            RankPasses(
                all=work_of(layout, lengths, equal),
                repeated=work_of(layout, lengths, equal[counts.kept :]),
                size=float(batch.sizes[own].sum()),
            )
        )
    return StepPasses(passes, counts.chunks, max(0, counts.chunks - counts.kept))

"""The training step: the exact gradient of a global batch, independent of the number of ranks and chunks.

1. Every rank embeds its part of the batch's distinct texts. The parts are summed into one matrix of all
   embeddings, which every rank holds.
2. Every rank computes the loss of the full batch and its gradient with respect to that matrix. This is cheap
   compared with the model.
3. Every rank propagates its own rows of that gradient back through the model.

No collective is differentiated, so that the loss and the gradient do not depend on the partition. With
`grad_cache` (Gao et al., arXiv 2101.06983) step 1 keeps no activations and step 3 runs the forward pass of
each chunk again, so that a global batch can be larger than memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from boom_ray.model.tokens import Tokens

Chunk = np.ndarray
Embed = Callable[[Chunk], Tensor]


def share_chunks(
    lengths: np.ndarray, num_ranks: int, cut: Callable[[np.ndarray], list[Chunk]]
) -> list[list[Chunk]]:
    """Distribute texts over ranks, longest first, and cut the part of every rank into equally many chunks.

    ZeRO-3 gathers parameters in every forward pass, and a rank with fewer passes would block the others.

    Args:
        lengths: [n] tokens of each text.
        cut: Cuts texts of given lengths into chunks, such as the `chunks` of a layout.

    Returns:
        Index arrays of each rank, which together contain each of 0..n-1 once. A rank with too few texts has
        empty chunks.
    """
    order = np.argsort(-lengths, kind="stable")
    parts = [order[rank::num_ranks] for rank in range(num_ranks)]
    chunks = [[part[chunk] for chunk in cut(lengths[part])] for part in parts]
    num_chunks = max(map(len, chunks))
    for rank_chunks in chunks:
        while len(rank_chunks) < num_chunks:
            _add_chunk(rank_chunks)
    return chunks


def _add_chunk(chunks: list[Chunk]) -> None:
    """Halve the chunk with the most texts, or append an empty chunk if none has two."""
    largest = max(range(len(chunks)), key=lambda index: len(chunks[index]), default=None)
    if largest is None or len(chunks[largest]) < 2:
        chunks.append(np.empty(0, dtype=np.int64))
    else:
        chunks[largest : largest + 1] = np.array_split(chunks[largest], 2)


@dataclass(frozen=True)
class TrainingStep:
    """The part of one rank in a step.

    Attributes:
        sum_over_ranks: Sums a tensor over all ranks, in place.
        backward: Runs the backward pass of a scalar; the flag marks the last pass of the step.
        grad_cache: Run chunks again for the backward pass instead of keeping their activations.
        gradient_scale: Factor that undoes the backend's averaging of gradients over ranks: their number.
    """

    sum_over_ranks: Callable[[Tensor], object]
    backward: Callable[[Tensor, bool], object]
    grad_cache: bool = False
    gradient_scale: float = 1.0

    def __call__(
        self, embed: Embed, chunks: Sequence[Chunk], num_texts: int, loss: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Accumulate the gradient of one global batch into the model's parameters.

        Args:
            embed: Embeds the texts of a chunk: [len(chunk), d] float32.
            chunks: This rank's chunks.
            num_texts: Distinct texts of the global batch.
            loss: From [num_texts, d] embeddings to the scalar loss.

        Returns:
            Loss of the global batch, and its [num_texts, d] embeddings, both detached.
        """
        with torch.set_grad_enabled(not self.grad_cache):
            pieces = [embed(chunk) for chunk in chunks]
        embeddings = pieces[0].new_zeros((num_texts, pieces[0].shape[1]), requires_grad=False)
        with torch.no_grad():
            for chunk, piece in zip(chunks, pieces, strict=True):
                embeddings[torch.from_numpy(chunk)] = piece
        self.sum_over_ranks(embeddings)
        value = loss(embeddings.requires_grad_())
        value.backward()
        assert embeddings.grad is not None
        for surrogate, is_last in self._surrogates(embed, chunks, pieces, embeddings.grad):
            self.backward(surrogate * self.gradient_scale, is_last)
        return value.detach(), embeddings.detach()

    def _surrogates(
        self, embed: Embed, chunks: Sequence[Chunk], pieces: list[Tensor], gradient: Tensor
    ) -> Iterator[tuple[Tensor, bool]]:
        """Scalars <embeddings, gradient>, whose gradients sum to that of the loss: one, or one per chunk.

        The flag marks the last one.
        """
        if not self.grad_cache:
            products = [
                (piece * gradient[torch.from_numpy(chunk)]).sum()
                for chunk, piece in zip(chunks, pieces, strict=True)
            ]
            yield torch.stack(products).sum(), True
            return
        for index, chunk in enumerate(chunks):
            yield (embed(chunk) * gradient[torch.from_numpy(chunk)]).sum(), index == len(chunks) - 1


def embedder(
    forward: Callable[..., Tensor],
    collate: Callable[[Tokens], tuple[Tensor | int, ...]],
    tokens: Tokens,
) -> Embed:
    """`Embed` for tokenized texts.

    An empty chunk runs one text and discards it: with ZeRO-3 all ranks must run the same forward passes.

    Args:
        forward: From what `collate` returns to embeddings.
        collate: From token ids to one batch, see `Encoder.collate`.
        tokens: Token ids of all texts of the batch.
    """

    def embed(chunk: Chunk) -> Tensor:
        texts = tokens[chunk] if len(chunk) else tokens[:1]
        return forward(*collate(texts))[: len(chunk)]

    return embed

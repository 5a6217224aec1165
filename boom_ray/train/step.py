"""The training step: the exact gradient of a global batch, whatever the number of ranks and chunks.

1. Every rank embeds its share of the batch's distinct texts; the shares are summed into one matrix that all
ranks hold. 2. Every rank computes the loss of the whole batch and its gradient with respect to that matrix,
which is cheap. 3. Every rank sends the rows of that gradient that are its own back through the model.

No collective needs a gradient of its own, and loss and gradient do not depend on the cut. With `grad_cache`
(Gao et al., arXiv 2101.06983) the first pass keeps no activations and the third runs each chunk again, so
that a global batch can be larger than memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from boom_ray.model.encoder import chunk_by_tokens

Chunk = np.ndarray
Embed = Callable[[Chunk], Tensor]


def share_chunks(lengths: np.ndarray, num_ranks: int, chunk_tokens: int) -> list[list[Chunk]]:
    """Deal texts to ranks, longest first, and cut every share into the same number of chunks.

    The number is the same because ZeRO-3 gathers parameters in every forward pass, so all ranks must run as
    many.

    Args:
        lengths: [n] tokens of each text.
        chunk_tokens: Padded tokens in one chunk.

    Returns:
        Per rank, index arrays; together they hold each of 0..n-1 once. A rank with too few texts gets empty
        ones.
    """
    order = np.argsort(-lengths, kind="stable")
    shares = [order[rank::num_ranks] for rank in range(num_ranks)]
    chunks = [[share[chunk] for chunk in chunk_by_tokens(lengths[share], chunk_tokens)] for share in shares]
    most = max(len(of_rank) for of_rank in chunks)
    for of_rank in chunks:
        while len(of_rank) < most:
            widest = max(range(len(of_rank)), key=lambda index: len(of_rank[index])) if of_rank else -1
            if widest < 0 or len(of_rank[widest]) < 2:
                of_rank.append(np.empty(0, dtype=order.dtype))
            else:
                of_rank[widest : widest + 1] = np.array_split(of_rank[widest], 2)
    return chunks


@dataclass(frozen=True)
class Step:
    """How one rank takes part in a step.

    Attributes:
        sum_over_ranks: Adds a tensor up over all ranks, in place.
        backward: Runs the backward pass of a scalar; the flag says whether it is the step's last.
        grad_cache: Run chunks again for the backward pass instead of keeping their activations.
        gradient_scale: What the backend's averaging of gradients has to be undone by (its number of ranks).
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
            The loss of the global batch, and its [num_texts, d] embeddings, both detached.
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
        """Scalars whose gradients add up to that of the loss: <embeddings, gradient>, per chunk or in one."""
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
    forward: Callable[[Tensor, Tensor], Tensor],
    pad: Callable[[list[list[int]]], tuple[Tensor, Tensor]],
    token_ids: list[list[int]],
) -> Embed:
    """`Embed` for tokenized texts; an empty chunk runs one text, to keep ranks in step, for nothing."""

    def embed(chunk: Chunk) -> Tensor:
        texts = [token_ids[index] for index in chunk] or token_ids[:1]
        return forward(*pad(texts))[: len(chunk)]

    return embed

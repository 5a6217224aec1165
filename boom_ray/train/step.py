"""The training step: the exact gradient of a global batch, independent of the number of ranks and chunks.

1. Every rank embeds its part of the batch's distinct texts. The parts are summed into one matrix of all
   embeddings, which every rank holds.
2. Every rank computes the terms of the loss of its own queries, and their gradient with respect to that
   matrix. Both are summed over the ranks.
3. Every rank propagates its own rows of that gradient back through the model.

No collective is differentiated, so that the loss and the gradient do not depend on the partition. Chunks
whose activations do not fit in memory with those of the first keep none: step 3 runs their forward passes
again (GradCache; Gao et al., arXiv 2101.06983).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from boom_ray.model.tokens import Tokens
from boom_ray.train.share import Chunk

Embed = Callable[[Chunk], Tensor]
Term = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TrainingStep:
    """The part of one rank in a step.

    Attributes:
        sum_over_ranks: Sums a tensor over all ranks, in place.
        backward: Runs the backward pass of a scalar; the flag marks the last pass of the step.
        gradient_scale: Factor that undoes the backend's averaging of gradients over ranks: their number.
    """

    sum_over_ranks: Callable[[Tensor], object]
    backward: Callable[[Tensor, bool], object]
    gradient_scale: float = 1.0

    def __call__(
        self,
        embed: Embed,
        texts: np.ndarray,
        chunks: Sequence[Chunk],
        num_kept: int,
        num_texts: int,
        terms: Iterable[Term],
    ) -> tuple[Tensor, Tensor]:
        """Accumulate the gradient of one global batch into the model's parameters.

        Args:
            embed: Embeds the texts of a chunk: [len(chunk), d] float32.
            texts: [m] int64, indices of this rank's texts within the batch.
            chunks: Indices into `texts`, as many chunks as every other rank has.
            num_kept: How many of the first chunks keep their activations, at least one, on all ranks.
            num_texts: Distinct texts of the global batch.
            terms: Functions from [num_texts, d] embeddings to scalars, whose sum over all ranks is the loss.

        Returns:
            Loss of the global batch, and its [num_texts, d] embeddings, both detached.
        """
        # What is kept is embedded last and propagated back first: only then is there memory for the others.
        kept, others = chunks[:num_kept], chunks[num_kept:]
        with torch.no_grad():
            without_graph = [embed(chunk) for chunk in others]
        with_graph = [embed(chunk) for chunk in kept]
        rows = torch.from_numpy(texts[np.concatenate(chunks)])
        embeddings = self._gathered(rows, [*with_graph, *without_graph], num_texts)
        loss, gradient = self._loss(embeddings, terms)
        gradients = gradient[rows].split([*map(len, chunks)])
        self._propagate(with_graph, torch.cat(gradients[:num_kept]), is_last=not others)
        for index, chunk in enumerate(others, start=num_kept):
            self._propagate([embed(chunk)], gradients[index], is_last=index == len(chunks) - 1)
        return loss, embeddings

    @torch.no_grad()
    def _gathered(self, rows: Tensor, pieces: list[Tensor], num_texts: int) -> Tensor:
        """[num_texts, d] embeddings of all ranks' texts."""
        embeddings = pieces[0].new_zeros((num_texts, pieces[0].shape[1]))
        embeddings[rows] = torch.cat(pieces)
        self.sum_over_ranks(embeddings)
        return embeddings

    def _loss(self, embeddings: Tensor, terms: Iterable[Term]) -> tuple[Tensor, Tensor]:
        """The loss, and its [num_texts, d] gradient; the graph of one term exists at a time."""
        variable = embeddings.detach().requires_grad_()
        loss, gradient = embeddings.new_zeros(()), torch.zeros_like(embeddings)
        for term in terms:
            value = term(variable)
            loss += value.detach()
            gradient += torch.autograd.grad(value, variable)[0]
        self.sum_over_ranks(loss)
        self.sum_over_ranks(gradient)
        return loss, gradient

    def _propagate(self, pieces: list[Tensor], gradient: Tensor, is_last: bool) -> None:
        """Add to the parameters the gradient of <embeddings, gradient>: the part of these texts in that of
        the loss. Frees the pieces."""
        product = (torch.cat(pieces) * gradient).sum()
        pieces.clear()
        self.backward(product * self.gradient_scale, is_last)


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
        tokens: Token ids of the texts of this rank, at least of one.
    """

    def embed(chunk: Chunk) -> Tensor:
        texts = tokens[chunk] if len(chunk) else tokens[:1]
        return forward(*collate(texts))[: len(chunk)]

    return embed

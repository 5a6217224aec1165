"""The loss of one global batch: InfoNCE (arXiv 1807.03748; arXiv 2602.05787), distillation from a teacher's
scores (arXiv 2402.03216), and Matryoshka lengths (arXiv 2205.13147)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize

from boom_ray.data.collate import NO_TEXT, Batch
from boom_ray.recipe import OWN_NEGATIVES, Distillation


def batch_loss(
    embeddings: Tensor,
    batch: Batch,
    temperature: float,
    distillation: Distillation | None = None,
    matryoshka: Sequence[int] = (),
) -> Tensor:
    """The contrastive loss of a global batch, averaged over the full and all Matryoshka lengths.

    Args:
        embeddings: [n, d] float32, row k embeds `batch.texts[k]`, norm 1.
        matryoshka: Lengths to which embeddings are truncated and normalized again; d is always added.

    Returns:
        Scalar float32.
    """
    lengths = sorted({*matryoshka, embeddings.shape[1]})
    losses = [
        contrastive_loss(normalize(embeddings[:, :length], dim=-1), batch, temperature, distillation)
        for length in lengths[:-1]
    ]
    losses.append(contrastive_loss(embeddings, batch, temperature, distillation))
    return torch.stack(losses).mean()


def contrastive_loss(
    embeddings: Tensor, batch: Batch, temperature: float, distillation: Distillation | None = None
) -> Tensor:
    """The mean contrastive loss of a global batch. The type of its task determines the negatives.

    - `retrieval`: all passages of the batch, including the hard negatives of other rows;
    - `sts`: symmetric: as for retrieval, averaged with the loss from positives to queries;
    - `classification`, `clustering`: only the row's own negatives, because other rows share its label.

    A positive of a query, in whichever row of the task, is never a negative of it.

    Distillation uses the soft labels t of `soft_labels`. A row whose positive has no score learns by InfoNCE
    alone.

    - `kl_div`: InfoNCE plus the cross-entropy between t and the student's softmax over the group;
    - `m3_kd`: the sum over candidates k of t_k times the InfoNCE loss with k as the positive and without the
      candidates before k.

    Args:
        embeddings: [n, d] float32, row k embeds `batch.texts[k]`, norm 1.
        batch: B rows with G candidates each.
        temperature: Divisor of the cosines.

    Returns:
        Scalar float32.
    """
    num_rows, group_size = batch.candidates.shape
    device = embeddings.device
    rows = torch.arange(num_rows, device=device)
    queries = embeddings[torch.from_numpy(batch.queries)]
    candidates = embeddings[torch.from_numpy(batch.candidates.ravel().clip(min=0))]
    positive = torch.from_numpy(positive_mask(batch)).to(device)
    group = torch.arange(group_size, device=device).expand(num_rows, -1)
    if batch.type in OWN_NEGATIVES:
        own = positive.view(num_rows, num_rows, group_size)[rows, rows]
        logits = torch.einsum("bd,bgd->bg", queries, candidates.view(num_rows, group_size, -1))
        return _query_loss(logits / temperature, own, group, batch, distillation)
    group = group + rows[:, None] * group_size
    forward = _query_loss(queries @ candidates.T / temperature, positive, group, batch, distillation)
    if batch.type == "retrieval":
        return forward
    # The same query text can occur in several rows; it is not a negative of itself.
    same_query = torch.from_numpy(batch.queries[:, None] == batch.queries).to(device)
    excluded = positive[:, ::group_size].T | same_query
    backward = _cross_entropy(candidates[::group_size] @ queries.T / temperature, excluded, rows).mean()
    return (forward + backward) / 2


def positive_mask(batch: Batch) -> np.ndarray:
    """[B, B * G] bool: candidates that are positives of a row; empty slots (`NO_TEXT`) count as positives.

    The mask is by text: a passage of another row can be a positive of this row too.
    """
    num_rows = len(batch.queries)
    positive = np.zeros((num_rows, len(batch.texts) + 1), dtype=bool)
    positive[:, NO_TEXT] = True  # NO_TEXT is -1, the index of the additional last column
    for row, positives in enumerate(batch.positives):
        positive[row, positives] = True
    return positive[:, batch.candidates.ravel()]


def soft_labels(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The softmax of a teacher's scores over each group.

    Args:
        scores: [B, G] float32, NaN where missing. If the positive's is missing, the row has no teacher and
            its label is one-hot.

    Returns:
        [B, G] float32 soft labels of sum 1, and [B, G] bool, which candidates have a score.
    """
    scored = ~np.isnan(scores) & ~np.isnan(scores[:, :1])
    scored[:, 0] = True
    logits = np.where(scored, np.nan_to_num(scores), -np.inf)
    labels = np.exp(logits - logits.max(1, keepdims=True))
    return labels / labels.sum(1, keepdims=True), scored


def _query_loss(
    logits: Tensor, excluded: Tensor, group: Tensor, batch: Batch, distillation: Distillation | None
) -> Tensor:
    """The mean loss from queries to candidates.

    Args:
        logits: [B, C], cosines over the temperature.
        excluded: [B, C] bool, candidates that are not negatives of a row.
        group: [B, G] int64, columns of a row's own candidates, the positive first.
    """
    if distillation != "m3_kd":
        info_nce = _cross_entropy(logits, excluded, group[:, 0]).mean()
    if distillation is None:
        return info_nce
    labels, scored = (torch.from_numpy(array).to(logits.device) for array in soft_labels(batch.scores))
    if distillation == "kl_div":
        least = torch.finfo(logits.dtype).min
        # The least finite number instead of -inf: a label of 0 times -inf would be NaN.
        student = log_softmax(logits.gather(1, group).masked_fill(~scored, least), dim=1)
        return info_nce - (labels * student).sum(1).mean()
    total = logits.new_zeros(())
    for slot in range(group.shape[1]):
        total = total + (labels[:, slot] * _cross_entropy(logits, excluded, group[:, slot])).mean()
        excluded = excluded.scatter(1, group[:, slot, None], True)
    return total


def _cross_entropy(logits: Tensor, excluded: Tensor, target: Tensor) -> Tensor:
    """[B] cross-entropies over the columns that are not excluded; a row's target never is."""
    excluded = excluded.scatter(1, target[:, None], False)
    return cross_entropy(logits.masked_fill(excluded, float("-inf")), target, reduction="none")

"""InfoNCE over the embeddings of one global batch (arXiv 2602.05787; arXiv 1807.03748), and what is built on
it: distillation from a teacher's scores (arXiv 2402.03216) and Matryoshka lengths (arXiv 2205.13147)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize

from boom_ray.data.collate import NO_TEXT, Batch
from boom_ray.recipe import Distillation


def batch_loss(
    embeddings: Tensor,
    batch: Batch,
    temperature: float,
    distillation: Distillation | None = None,
    matryoshka: Sequence[int] = (),
) -> Tensor:
    """The loss of a global batch: that of whole embeddings, or its mean over Matryoshka lengths.

    Args:
        embeddings: [n, d] float32, row k embeds `batch.texts[k]`, norm 1.
        matryoshka: Lengths the embeddings are cut to, and normalized again; the whole one is always added.
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
    """The mean loss of a global batch; which texts are negatives depends on the type of its task.

    - `retrieval`: every passage of the batch, hard negatives of all rows included;
    - `sts`: the same, and the other way round, from positives to queries;
    - `classification`, `clustering`: the row's own negatives only, since other rows share its labels.

    A text that is a right answer to a row is never a negative of that row.

    Distillation uses t, the softmax of a teacher's scores over a row's group; a candidate without a score
    has no part in it, and a row whose positive has none learns by InfoNCE alone.

    - `kl_div`: InfoNCE plus the cross-entropy of the student's softmax over the group from t;
    - `m3_kd`: sum over candidates k of t_k times the InfoNCE of k as the positive, without those before it.

    Args:
        embeddings: [n, d] float32, row k embeds `batch.texts[k]`, norm 1.
        batch: B rows with G candidates each.
        temperature: Divides the cosines.

    Returns:
        Scalar float32.
    """
    num_rows, group_size = batch.candidates.shape
    device = embeddings.device
    rows = torch.arange(num_rows, device=device)
    queries = embeddings[torch.from_numpy(batch.queries)]
    candidates = embeddings[torch.from_numpy(batch.candidates.ravel().clip(min=0))]
    right = torch.from_numpy(right_answers(batch)).to(device)
    group = torch.arange(group_size, device=device).expand(num_rows, -1)
    if batch.type in ("classification", "clustering"):
        own = right.view(num_rows, num_rows, group_size)[rows, rows]
        logits = torch.einsum("bd,bgd->bg", queries, candidates.view(num_rows, group_size, -1))
        return _toward_candidates(logits / temperature, own, group, batch, distillation)
    group = group + rows[:, None] * group_size
    forward = _toward_candidates(queries @ candidates.T / temperature, right, group, batch, distillation)
    if batch.type == "retrieval":
        return forward
    same_query = torch.from_numpy(batch.queries[:, None] == batch.queries).to(device)
    excluded = right[:, ::group_size].T | same_query
    backward = _cross_entropy(candidates[::group_size] @ queries.T / temperature, excluded, rows).mean()
    return (forward + backward) / 2


def right_answers(batch: Batch) -> np.ndarray:
    """[B, B * G] bool: candidates that are no negative of a row, because they answer it or are no text."""
    num_rows = len(batch.queries)
    right = np.zeros((num_rows, len(batch.texts) + 1), dtype=bool)
    right[:, NO_TEXT] = True
    for row, positives in enumerate(batch.positives):
        right[row, positives] = True
    return right[:, batch.candidates.ravel()]


def teacher_shares(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's softmax over each group, and which candidates have a part in it.

    Args:
        scores: [B, G] float32, NaN where unknown. Where the positive's is, all of the row's count as such.

    Returns:
        [B, G] float32 shares with sum 1, and [B, G] bool.
    """
    known = ~np.isnan(scores) & ~np.isnan(scores[:, :1])
    known[:, 0] = True
    logits = np.where(known, np.nan_to_num(scores), -np.inf)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True), known


def _toward_candidates(
    logits: Tensor, excluded: Tensor, group: Tensor, batch: Batch, distillation: Distillation | None
) -> Tensor:
    """From queries [B] to candidates; `group` [B, G] holds the columns of a row's own, the positive first."""
    if distillation != "m3_kd":
        plain = _cross_entropy(logits, excluded, group[:, 0]).mean()
    if distillation is None:
        return plain
    shares, known = (torch.from_numpy(part).to(logits.device) for part in teacher_shares(batch.scores))
    if distillation == "kl_div":
        least = torch.finfo(logits.dtype).min
        student = log_softmax(logits.gather(1, group).masked_fill(~known, least), dim=1)
        return plain - (shares * student).sum(1).mean()
    total = logits.new_zeros(())
    for place in range(group.shape[1]):
        total = total + (shares[:, place] * _cross_entropy(logits, excluded, group[:, place])).mean()
        excluded = excluded.scatter(1, group[:, place, None], True)
    return total


def _cross_entropy(logits: Tensor, excluded: Tensor, target: Tensor) -> Tensor:
    """[B] cross-entropies without the excluded columns; a row's target is never excluded."""
    excluded = excluded.scatter(1, target[:, None], False)
    return cross_entropy(logits.masked_fill(excluded, float("-inf")), target, reduction="none")

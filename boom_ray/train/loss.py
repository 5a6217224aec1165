"""The loss of one global batch: InfoNCE (arXiv 1807.03748; arXiv 2602.05787), distillation from a teacher's
scores (arXiv 2402.03216), and Matryoshka lengths (arXiv 2205.13147)."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize

from boom_ray.data.collate import NO_TEXT, Batch
from boom_ray.recipe import OWN_NEGATIVES, Distillation, Train
from boom_ray.train.buffers import MAX_LOGITS


def loss_terms(
    batch: Batch, train: Train, rank: int = 0, num_ranks: int = 1
) -> Iterator[Callable[[Tensor], Tensor]]:
    """The terms of the loss of a global batch that one rank computes, as functions of its embeddings.

    The terms of all ranks sum to the loss. Each is of a part of the rows, small enough for `MAX_LOGITS`.
    """
    own = np.array_split(np.arange(len(batch.queries)), num_ranks)[rank]
    most = max(1, MAX_LOGITS // batch.candidates.size)
    for start in range(0, len(own), most):
        yield partial(
            batch_loss,
            batch=batch,
            temperature=train.temperature,
            distillation=train.distillation,
            matryoshka=train.matryoshka,
            rows=own[start : start + most],
        )


def batch_loss(
    embeddings: Tensor,
    batch: Batch,
    temperature: float,
    distillation: Distillation | None = None,
    matryoshka: Sequence[int] = (),
    rows: np.ndarray | None = None,
) -> Tensor:
    """The contrastive loss of a global batch, averaged over the full and all Matryoshka lengths.

    Args:
        embeddings: [n, d] float32, row k embeds `batch.texts[k]`, norm 1.
        matryoshka: Lengths to which embeddings are truncated and normalized again; d is always added.
        rows: Rows whose part of the loss is computed; by default all.

    Returns:
        Scalar float32.
    """
    lengths = sorted({*matryoshka, embeddings.shape[1]})
    losses = [
        contrastive_loss(normalize(embeddings[:, :length], dim=-1), batch, temperature, distillation, rows)
        for length in lengths[:-1]
    ]
    losses.append(contrastive_loss(embeddings, batch, temperature, distillation, rows))
    return torch.stack(losses).mean()


def contrastive_loss(
    embeddings: Tensor,
    batch: Batch,
    temperature: float,
    distillation: Distillation | None = None,
    rows: np.ndarray | None = None,
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
        rows: [b] int64, rows whose part of the mean is computed; by default all.

    Returns:
        Scalar float32: the sum over `rows`, divided by B.
    """
    rows = np.arange(len(batch.queries)) if rows is None else rows
    loss = _own_loss if batch.type in OWN_NEGATIVES else _in_batch_loss
    return loss(embeddings, batch, temperature, distillation, rows) / len(batch.queries)


def _own_loss(
    embeddings: Tensor, batch: Batch, temperature: float, distillation: Distillation | None, rows: np.ndarray
) -> Tensor:
    """The sum of the losses of rows whose candidates are their groups."""
    texts = batch.candidates[rows]
    queries = embeddings[torch.from_numpy(batch.queries[rows])]
    candidates = embeddings[torch.from_numpy(texts.clip(min=0))]
    positive = positive_texts(batch, rows, embeddings.device)
    excluded = positive[torch.arange(len(rows))[:, None], torch.from_numpy(texts)]
    group = torch.arange(texts.shape[1], device=embeddings.device).expand(len(rows), -1)
    logits = torch.einsum("bd,bgd->bg", queries, candidates) / temperature
    return _query_loss(logits, excluded, group, batch.scores[rows], distillation)


def _in_batch_loss(
    embeddings: Tensor, batch: Batch, temperature: float, distillation: Distillation | None, rows: np.ndarray
) -> Tensor:
    """The sum of the losses of rows whose candidates are those of the whole batch, in both directions for
    `sts`."""
    own, group_size = torch.from_numpy(rows).to(embeddings.device), batch.candidates.shape[1]
    queries = embeddings[torch.from_numpy(batch.queries)]
    candidates = embeddings[torch.from_numpy(batch.candidates.ravel().clip(min=0))]
    positive = positive_texts(batch, rows, embeddings.device)
    excluded = positive[:, torch.from_numpy(batch.candidates.ravel())]
    group = own[:, None] * group_size + torch.arange(group_size, device=own.device)
    logits = queries[own] @ candidates.T / temperature
    forward = _query_loss(logits, excluded, group, batch.scores[rows], distillation)
    if batch.type == "retrieval":
        return forward
    logits = candidates[own * group_size] @ queries.T / temperature
    backward = _cross_entropy(logits, _answered(batch, rows, embeddings.device), own).sum()
    return (forward + backward) / 2


def positive_texts(
    batch: Batch, rows: np.ndarray | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """[b, n + 1] bool: which of the n texts are positives of the queries of b rows, by default of all.

    The last column, which is that of `NO_TEXT`, counts as one. A passage of another row can be a positive of
    a row too.
    """
    num_rows, num_texts = len(batch.queries), len(batch.texts)
    rows = np.arange(num_rows) if rows is None else rows
    positive = _rows_of(batch.positives, rows, (num_rows, num_texts + 1), device)
    positive[:, NO_TEXT] = True
    return positive


def _answered(batch: Batch, rows: np.ndarray, device: torch.device) -> Tensor:
    """[b, B] bool: the queries of the batch of which the positive of a row is a positive, and those that
    equal the row's own."""
    num_rows, num_texts = len(batch.queries), len(batch.texts)
    pairs = batch.positives[:, ::-1]
    answered = _rows_of(pairs, batch.candidates[rows, 0], (num_texts, num_rows), device)
    queries = torch.from_numpy(batch.queries).to(device)
    return answered | (queries[torch.from_numpy(rows)][:, None] == queries)


def _rows_of(
    pairs: np.ndarray, rows: np.ndarray, shape: tuple[int, int], device: torch.device | str
) -> Tensor:
    """Rows, in any order and with repetitions, of a bool matrix that is true at some pairs of indices.

    Args:
        pairs: [p, 2] int64.
        rows: [b] int64.
        shape: Of the whole matrix, which is never built.
    """
    distinct, inverse = np.unique(rows, return_inverse=True)
    position = np.full(shape[0], -1)
    position[distinct] = np.arange(len(distinct))
    found = position[pairs[:, 0]]
    inside = found >= 0
    matrix = torch.zeros(len(distinct), shape[1], dtype=torch.bool, device=device)
    matrix[torch.from_numpy(found[inside]), torch.from_numpy(pairs[inside, 1])] = True
    return matrix[torch.from_numpy(inverse)]


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
    logits: Tensor, excluded: Tensor, group: Tensor, scores: np.ndarray, distillation: Distillation | None
) -> Tensor:
    """The sum of the losses from queries to candidates.

    Args:
        logits: [b, C], cosines over the temperature.
        excluded: [b, C] bool, candidates that are not negatives of a row.
        group: [b, G] int64, columns of a row's own candidates, the positive first.
        scores: [b, G] float32, the teacher's.
    """
    if distillation != "m3_kd":
        info_nce = _cross_entropy(logits, excluded, group[:, 0]).sum()
    if distillation is None:
        return info_nce
    labels, scored = (torch.from_numpy(array).to(logits.device) for array in soft_labels(scores))
    if distillation == "kl_div":
        least = torch.finfo(logits.dtype).min
        # The least finite number instead of -inf: a label of 0 times -inf would be NaN.
        student = log_softmax(logits.gather(1, group).masked_fill(~scored, least), dim=1)
        return info_nce - (labels * student).sum()
    total = logits.new_zeros(())
    for slot in range(group.shape[1]):
        total = total + (labels[:, slot] * _cross_entropy(logits, excluded, group[:, slot])).sum()
        excluded = excluded.scatter(1, group[:, slot, None], True)
    return total


def _cross_entropy(logits: Tensor, excluded: Tensor, target: Tensor) -> Tensor:
    """[b] cross-entropies over the columns that are not excluded; a row's target never is."""
    excluded = excluded.scatter(1, target[:, None], False)
    return cross_entropy(logits.masked_fill(excluded, float("-inf")), target, reduction="none")

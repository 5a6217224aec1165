"""InfoNCE over the embeddings of one global batch (arXiv 2602.05787; arXiv 1807.03748)."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from boom_ray.data.collate import Batch


def contrastive_loss(embeddings: Tensor, batch: Batch, temperature: float) -> Tensor:
    """The mean loss of a global batch; which texts are negatives depends on the type of its task.

    - `retrieval`: every passage of the batch, hard negatives of all rows included;
    - `sts`: the same, and the other way round, from positives to queries;
    - `classification`, `clustering`: the row's own negatives only, since other rows share its labels.

    A text that is a right answer to a row is never a negative of that row.

    Args:
        embeddings: [n, d] float32, row k embeds `batch.texts[k]`, norm 1.
        batch: B rows with G candidates each.
        temperature: Divides the cosines.

    Returns:
        Scalar float32.
    """
    num_rows, group_size = batch.candidates.shape
    rows = torch.arange(num_rows, device=embeddings.device)
    queries = embeddings[torch.from_numpy(batch.queries)]
    candidates = embeddings[torch.from_numpy(batch.candidates.ravel().clip(min=0))]
    right = torch.from_numpy(right_answers(batch)).to(embeddings.device)
    if batch.type in ("classification", "clustering"):
        own = right.view(num_rows, num_rows, group_size)[rows, rows]
        logits = torch.einsum("bd,bgd->bg", queries, candidates.view(num_rows, group_size, -1))
        return _cross_entropy(logits / temperature, own, torch.zeros_like(rows))
    forward = _cross_entropy(queries @ candidates.T / temperature, right, rows * group_size)
    if batch.type == "retrieval":
        return forward
    same_query = torch.from_numpy(batch.queries[:, None] == batch.queries).to(embeddings.device)
    excluded = right[:, ::group_size].T | same_query
    backward = _cross_entropy(candidates[::group_size] @ queries.T / temperature, excluded, rows)
    return (forward + backward) / 2


def right_answers(batch: Batch) -> np.ndarray:
    """[B, B * G] bool: candidates that are no negative of a row, because they answer it or are no text."""
    num_rows = len(batch.queries)
    right = np.zeros((num_rows, len(batch.texts) + 1), dtype=bool)
    right[:, -1] = True  # where NO_TEXT, -1, points to
    for row, positives in enumerate(batch.positives):
        right[row, positives] = True
    return right[:, batch.candidates.ravel()]


def _cross_entropy(logits: Tensor, excluded: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over rows, without the excluded columns; a row's target is never excluded."""
    excluded = excluded.scatter(1, target[:, None], False)
    return cross_entropy(logits.masked_fill(excluded, float("-inf")), target)

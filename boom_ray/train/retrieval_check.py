"""A quick retrieval check before and after training, which detects a broken run at once.

A few rows of every retrieval task are ranked against each other's positives. Where possible the rows are
out of bag: they belong to the corpus but not to the bag.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from boom_ray.data.bags import generator
from boom_ray.data.collate import Batch, Collator
from boom_ray.train.loss import positive_texts

MAX_TASKS = 8
NUM_ROWS = 32


def check(collators: dict[str, Collator], seed: int, embed: Callable[[Batch], Tensor]) -> float | None:
    """Mean reciprocal rank over the batches of `check_batches`; None without a retrieval task.

    Args:
        embed: Embeds the texts of a batch: [n, d] float32, norm 1.
    """
    ranks = [mean_reciprocal_rank(embed(batch), batch) for batch in check_batches(collators, seed)]
    return float(np.mean(ranks)) if ranks else None


def check_batches(collators: dict[str, Collator], seed: int) -> Iterator[Batch]:
    """One small batch of every retrieval task, at most of the largest `MAX_TASKS`."""
    eligible = [collator for collator in collators.values() if collator.type in ("retrieval", "sts")]
    for collator in sorted(eligible, key=lambda collator: -len(collator.rows))[:MAX_TASKS]:
        out_of_bag = np.setdiff1d(np.arange(len(collator.dataset)), collator.rows)
        pool = out_of_bag if len(out_of_bag) >= NUM_ROWS else collator.rows
        num_rows = min(NUM_ROWS, len(pool))
        rows = generator(seed, "check", collator.task).choice(pool, num_rows, replace=False)
        yield replace(collator, group_size=1)(rows, seed, 0)


def mean_reciprocal_rank(embeddings: Tensor, batch: Batch) -> float:
    """Mean reciprocal rank of each query's best positive among the positives of all queries.

    Args:
        embeddings: [n, d], row k embeds `batch.texts[k]`, norm 1.
        batch: Rows with groups of one.
    """
    queries = embeddings[torch.from_numpy(batch.queries)]
    passages = np.unique(batch.candidates[:, 0])
    scores = (queries @ embeddings[torch.from_numpy(passages)].T).float().cpu().numpy()
    positive = positive_texts(batch).numpy()[:, passages]
    best = np.where(positive, scores, -np.inf).max(1, keepdims=True)
    return float(np.mean(1 / (1 + ((scores > best) & ~positive).sum(1))))

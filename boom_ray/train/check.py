"""A quick check of each bag, so that a broken run is known at once: does the model find right answers?

Some rows of every retrieval task, of those the bag does not hold where there are any (the out-of-bag rows of
bagging), are ranked against each other's positives, with the base before training and with the model after.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from boom_ray.data.bags import generator
from boom_ray.data.collate import Batch, Collator
from boom_ray.train.loss import right_answers

MAX_TASKS, ROWS = 8, 32


def check_batches(collators: dict[str, Collator], seed: int) -> Iterator[Batch]:
    """One small batch of every retrieval task (of the largest eight, if there are more)."""
    eligible = [one for one in collators.values() if one.type in ("retrieval", "sts")]
    for collator in sorted(eligible, key=lambda one: -len(one.rows))[:MAX_TASKS]:
        rest = np.setdiff1d(np.arange(len(collator.dataset)), collator.rows)
        pool = rest if len(rest) >= ROWS else collator.rows
        rows = generator(seed, "check", collator.task).choice(pool, min(ROWS, len(pool)), replace=False)
        yield replace(collator, group_size=1)(rows, seed, 0)


def mean_reciprocal_rank(embeddings: Tensor, batch: Batch) -> float:
    """Of each query's best right answer among all positives of a batch with groups of one.

    Args:
        embeddings: [n, d], row k embeds `batch.texts[k]`, norm 1.
    """
    queries = embeddings[torch.from_numpy(batch.queries)]
    answers, first = np.unique(batch.candidates[:, 0], return_index=True)
    scores = (queries @ embeddings[torch.from_numpy(answers)].T).float().cpu().numpy()
    right = right_answers(batch)[:, first]
    best = np.where(right, scores, -np.inf).max(1, keepdims=True)
    return float(np.mean(1 / (1 + ((scores > best) & ~right).sum(1))))

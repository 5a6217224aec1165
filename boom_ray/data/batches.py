"""Global batches: the rows of each optimizer step.

Batch-level shuffling (arXiv 2602.05787, §4): every batch holds rows of one task, and the order of the
batches is shuffled over all tasks. The list is a pure function of (bag, seed, epoch, batch size). World size,
micro-batches and the step of resumption do not change it, so the state of the sampler is a step number.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from boom_ray.data.bags import Bag, generator
from boom_ray.recipe import Train


@dataclass(frozen=True)
class Batches:
    """All global batches of one epoch.

    Attributes:
        tasks: Task of each batch.
        rows: [num_batches, batch_size] int64, row indices within the task.
    """

    tasks: list[str]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.tasks)


def num_batches(sizes: Iterable[int], batch_size: int) -> int:
    """Batches of one epoch over tasks of these sizes; a short last batch is completed, so it counts."""
    return sum(-(-size // batch_size) for size in sizes)


def num_steps(sizes: Iterable[int], train: Train) -> int:
    """Optimizer steps of a bag with tasks of these sizes."""
    total = train.epochs * num_batches(sizes, train.batch_size)
    return min(total, train.max_steps or total)


def epoch_batches(bag: Bag, batch_size: int, seed: int, epoch: int) -> Batches:
    """The batches of one epoch.

    No row is left out: a task's short last batch is completed with rows of the same task drawn again, so
    that a task smaller than one batch is still trained on.
    """
    tasks, blocks = [], []
    for task, rows in sorted(bag.items()):
        draw = generator(seed, "batches", epoch, task)
        order = draw.permutation(rows)
        missing = -len(order) % batch_size
        pool = order[: len(order) - len(order) % batch_size]
        pool = pool if len(pool) >= missing else order
        extra = draw.choice(pool, missing, replace=missing > len(pool))
        block = np.concatenate([order, extra]).reshape(-1, batch_size)
        blocks.append(block)
        tasks += [task] * len(block)
    shuffled = generator(seed, "order", epoch).permutation(len(tasks))
    return Batches([tasks[index] for index in shuffled], np.concatenate(blocks)[shuffled])

"""The stream of tokenized global batches, prepared one step ahead of the model."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from boom_ray.data import bags, corpus
from boom_ray.data.batches import Batches, epoch_batches, num_batches, num_steps
from boom_ray.data.collate import Batch, Collator
from boom_ray.model.encoder import Encoder
from boom_ray.train.job import BagJob


@dataclass(frozen=True)
class Fed:
    """A global batch with the token ids and the number of tokens of each of its distinct texts."""

    batch: Batch
    rows: np.ndarray
    token_ids: list[list[int]]
    lengths: np.ndarray


class Feed:
    """All global batches of a bag, by step number."""

    def __init__(self, job: BagJob, encoder: Encoder) -> None:
        self.train, self.encoder = job.recipe.train, encoder
        self.bag = bags.read(job.bags, job.index)
        tasks = {task.name: task for task in job.recipe.data.tasks}
        self.collators = {
            name: Collator(
                name,
                tasks[name].type,
                corpus.load_task(job.corpus, name),
                rows,
                job.recipe.data.prompt(tasks[name]),
                job.recipe.data.query_template,
                self.train.group_size,
            )
            for name, rows in self.bag.items()
        }
        sizes = [len(rows) for rows in self.bag.values()]
        self.steps_per_epoch = num_batches(sizes, self.train.batch_size)
        self.num_steps = num_steps(sizes, self.train)
        self._epoch: tuple[int, Batches] | None = None

    def _batches(self, epoch: int) -> Batches:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, epoch_batches(self.bag, self.train.batch_size, self.train.seed, epoch)
        return self._epoch[1]

    def batch(self, step: int) -> Fed:
        """The global batch of a step: a pure function of the bag, the recipe and the step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        batches = self._batches(epoch)
        rows = batches.rows[index]
        return self.tokenized(self.collators[batches.tasks[index]](rows, self.train.seed, step), rows)

    def tokenized(self, batch: Batch, rows: np.ndarray) -> Fed:
        """A batch with the token ids of its texts, each cut at the limit of its side."""
        token_ids: list[list[int]] = [[] for _ in batch.texts]
        limits = self.limits(batch)
        for limit in np.unique(limits).tolist():
            side = np.flatnonzero(limits == limit)
            encoded = self.encoder.tokenize([batch.texts[text] for text in side], limit)
            for text, ids in zip(side, encoded, strict=True):
                token_ids[text] = ids
        return Fed(batch, rows, token_ids, np.array([len(ids) for ids in token_ids]))

    def limits(self, batch: Batch) -> np.ndarray:
        """[n] int64, tokens after which each text of a batch is cut."""
        own = self.encoder.spec.max_length
        sides = [min(own, self.train.passage_max_length), min(own, self.train.query_max_length)]
        return np.array(sides)[batch.is_query.astype(int)]

    def from_step(self, first: int) -> Iterator[tuple[int, Fed]]:
        """Steps and their batches from `first` on; the next one is prepared while the model works."""
        with ThreadPoolExecutor(1) as ahead:
            upcoming = ahead.submit(self.batch, first) if first < self.num_steps else None
            for step in range(first, self.num_steps):
                assert upcoming is not None
                fed = upcoming.result()
                upcoming = ahead.submit(self.batch, step + 1) if step + 1 < self.num_steps else None
                yield step, fed

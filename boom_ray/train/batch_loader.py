"""Tokenized global batches, prepared one step ahead of the model."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from boom_ray.data import bags, corpus
from boom_ray.data.batches import Batches, epoch_batches, num_batches, num_steps
from boom_ray.data.collate import Batch, Collator
from boom_ray.errors import InputError
from boom_ray.model import directory
from boom_ray.model.encoder import Encoder
from boom_ray.model.tokens import Tokens
from boom_ray.train.bag_job import BagJob


@dataclass(frozen=True)
class TokenizedBatch:
    """A global batch with its tokens.

    Attributes:
        batch: The batch, with n distinct texts.
        rows: [batch_size] int64, indices of its rows within the task.
        tokens: Token ids of the n texts.
    """

    batch: Batch
    rows: np.ndarray
    tokens: Tokens


class BatchLoader:
    """All global batches of a bag, by step number."""

    def __init__(self, job: BagJob, encoder: Encoder) -> None:
        self.train, self.encoder = job.recipe.train, encoder
        self.bag = bags.read(job.bags, job.index)
        tasks = {task.name: task for task in job.recipe.data.tasks}
        prompts = directory.prompts_of(job.recipe.data, encoder.spec)
        self._check(prompts)
        self.collators = {
            name: Collator(
                task=name,
                type=tasks[name].type,
                dataset=corpus.load_task(job.corpus, name),
                answers=corpus.load_answers(job.corpus, tasks[name]),
                rows=rows,
                prompt=job.recipe.data.prompt(tasks[name]),
                template=job.recipe.data.query_template,
                group_size=self.train.group_size,
                document_prompt=prompts["document"],
            )
            for name, rows in self.bag.items()
        }
        sizes = [len(rows) for rows in self.bag.values()]
        self.steps_per_epoch = num_batches(sizes, self.train.batch_size)
        self.num_steps = num_steps(sizes, self.train)
        self._epoch: tuple[int, Batches] | None = None

    def _check(self, prompts: dict[str, str]) -> None:
        """Refuse prompts that leave no token of a text.

        Raises:
            InputError: naming the prompt and the length.
        """
        for name, prompt in prompts.items():
            side = "passage" if name == "document" else "query"
            limit = min(self.encoder.spec.max_length, getattr(self.train, f"{side}_max_length"))
            length = len(self.encoder.tokenizer(prompt)["input_ids"])
            if length >= limit:
                raise InputError(
                    f"train.{side}_max_length: {limit} tokens of each text are used, and the prompt {name} "
                    f"alone has {length}: {prompt[:80]!r}. Shorten its template, or raise the length"
                )

    def _batches(self, epoch: int) -> Batches:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, epoch_batches(self.bag, self.train.batch_size, self.train.seed, epoch)
        return self._epoch[1]

    def batch(self, step: int) -> TokenizedBatch:
        """The global batch of a step: a pure function of the bag, the recipe and the step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        batches = self._batches(epoch)
        rows = batches.rows[index]
        return self.tokenize(self.collators[batches.tasks[index]](rows, self.train.seed, step), rows)

    def tokenize(self, batch: Batch, rows: np.ndarray) -> TokenizedBatch:
        """Tokenize the texts of a batch, each truncated at the limit of its side."""
        limits = self.limits(batch)
        of_limit = {limit: np.flatnonzero(limits == limit) for limit in np.unique(limits).tolist()}
        parts = [
            self.encoder.tokenize([batch.texts[index] for index in indices], limit)
            for limit, indices in of_limit.items()
        ]
        tokens = Tokens.concatenate(parts)[np.argsort(np.concatenate(list(of_limit.values())))]
        if not self.encoder.spec.include_prompt:
            counts = [*map(self.encoder.skipped_tokens, batch.prompts, limits.tolist())]
            tokens = replace(tokens, skipped=np.array(counts))
        return TokenizedBatch(batch, rows, tokens)

    def limits(self, batch: Batch) -> np.ndarray:
        """[n] int64, number of tokens at which each text of a batch is truncated."""
        model_limit = self.encoder.spec.max_length
        passage_limit = min(model_limit, self.train.passage_max_length)
        query_limit = min(model_limit, self.train.query_max_length)
        return np.where(batch.is_query, query_limit, passage_limit)

    def from_step(self, first: int) -> Iterator[tuple[int, TokenizedBatch]]:
        """Steps and their batches from `first` on; a thread prepares the next batch in the meantime."""
        with ThreadPoolExecutor(1) as executor:
            upcoming = executor.submit(self.batch, first) if first < self.num_steps else None
            for step in range(first, self.num_steps):
                assert upcoming is not None
                batch = upcoming.result()
                upcoming = executor.submit(self.batch, step + 1) if step + 1 < self.num_steps else None
                yield step, batch

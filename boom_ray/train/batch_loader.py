"""Global batches, of which a rank tokenizes its share, one step ahead of the model."""

import time
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
from boom_ray.train.buffers import CHUNK_TOKENS_ON_CPU
from boom_ray.train.share import Chunk, Counts, deal, share_chunks, sizes_of


@dataclass(frozen=True)
class TokenizedBatch:
    """A global batch with the tokens of one rank's share.

    Attributes:
        batch: The batch, with n distinct texts.
        rows: [batch_size] int64, indices of its rows within the task.
        texts: [m] int64, indices of the rank's texts.
        tokens: Token ids of these m texts; of one that is discarded if m is 0.
        chunks: Indices into `texts`: what the rank can run at once.
        counts: Of this share.
    """

    batch: Batch
    rows: np.ndarray
    texts: np.ndarray
    tokens: Tokens
    chunks: list[Chunk]
    counts: Counts


class BatchLoader:
    """All global batches of a bag, by step number, for one of its ranks.

    Attributes:
        chunk_tokens: Most tokens of a chunk. If the recipe leaves them open, `chunk_size` measures them.
    """

    def __init__(self, job: BagJob, encoder: Encoder, rank: int = 0, num_ranks: int = 1) -> None:
        self.train, self.encoder = job.recipe.train, encoder
        self.rank, self.num_ranks = rank, num_ranks
        chosen = self.train.execution.chunk_tokens
        self.chunk_tokens = CHUNK_TOKENS_ON_CPU if chosen == "auto" else chosen
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
        """Tokenize this rank's share of a batch, and cut it into chunks."""
        texts = deal(sizes_of(batch.texts), self.rank, self.num_ranks)
        tokens = self.tokens(batch, texts if len(texts) else np.arange(1))
        lengths = tokens.lengths[: len(texts)]
        chunks, counts = share_chunks(self.encoder.layout, lengths, self.chunk_tokens)
        truncated = int((lengths >= self.limits(batch)[texts]).sum())
        return TokenizedBatch(batch, rows, texts, tokens, chunks, counts._replace(truncated=truncated))

    def tokens(self, batch: Batch, texts: np.ndarray) -> Tokens:
        """Token ids of some texts of a batch (at least one), each truncated at the limit of its side."""
        limits = self.limits(batch)[texts]
        of_limit = {limit: np.flatnonzero(limits == limit) for limit in np.unique(limits).tolist()}
        parts = [
            self.encoder.tokenize([batch.texts[index] for index in texts[chosen]], limit)
            for limit, chosen in of_limit.items()
        ]
        tokens = Tokens.concatenate(parts)[np.argsort(np.concatenate(list(of_limit.values())))]
        if self.encoder.spec.include_prompt:
            return tokens
        behind = [(batch.prompts[index], limit) for index, limit in zip(texts, limits.tolist(), strict=True)]
        skipped = {each: self.encoder.skipped_tokens(*each) for each in set(behind)}
        return replace(tokens, skipped=np.array([skipped[each] for each in behind]))

    def limits(self, batch: Batch) -> np.ndarray:
        """[n] int64, number of tokens at which each text of a batch is truncated."""
        model_limit = self.encoder.spec.max_length
        passage_limit = min(model_limit, self.train.passage_max_length)
        query_limit = min(model_limit, self.train.query_max_length)
        return np.where(batch.is_query, query_limit, passage_limit)

    def from_step(self, first: int) -> Iterator[tuple[int, TokenizedBatch]]:
        """Steps and their batches from `first` on; a thread prepares the next batch in the meantime.

        The counts of a batch include the time that its step waited for it.
        """
        with ThreadPoolExecutor(1) as executor:
            upcoming = executor.submit(self.batch, first) if first < self.num_steps else None
            for step in range(first, self.num_steps):
                assert upcoming is not None
                started = time.monotonic()
                batch = upcoming.result()
                waited = round(1e6 * (time.monotonic() - started))
                upcoming = executor.submit(self.batch, step + 1) if step + 1 < self.num_steps else None
                yield step, replace(batch, counts=batch.counts._replace(waited=waited))

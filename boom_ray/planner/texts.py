"""The texts and tokens of a global batch of each task.

They are measured on a few batches if the data and the base model's tokenizer are readable, else assumed from
the recipe's maximum lengths.
"""

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from boom_ray import storage
from boom_ray.data import corpus, rows
from boom_ray.data.answers import Collector
from boom_ray.data.bags import generator
from boom_ray.data.training_row import SCHEMA, BadRow, normalize
from boom_ray.errors import BoomError
from boom_ray.evaluation import beir
from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.memory import chunk_tokens
from boom_ray.recipe import Evaluate, Recipe, Task
from boom_ray.runs.layout import Layout

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

SCANNED_ROWS, NUM_BATCHES, NUM_TEXTS = 4096, 3, 256
ASSUMED = ("data.query_fill", "data.passage_fill", "data.distinct", "data.padding")
BYTES_PER_TOKEN = 4.5


@dataclass(frozen=True)
class BatchLoad:
    """The mean global batch of a task.

    Attributes:
        texts: Distinct texts.
        tokens: Tokens of the texts, truncated to their maximum length.
        computed: Tokens including padding.
        length: Padded length of the text of a token, mean over computed tokens.
        row_bytes: UTF-8 bytes of one row.
        measured: Whether these numbers come from the data.
    """

    texts: float
    tokens: float
    computed: float
    length: float
    row_bytes: float
    measured: bool


class BatchLoads:
    """Measures or assumes the mean global batch of each task of a recipe.

    Args:
        max_length: Tokens that the base model accepts; None if unknown.
        tokenizer: The base model's tokenizer; None if it cannot be read.
    """

    def __init__(
        self,
        recipe: Recipe,
        max_length: int | None,
        tokenizer: "PreTrainedTokenizerBase | None",
        assume: Assumptions,
    ) -> None:
        self.recipe, self.train, self.tokenizer, self.assume = recipe, recipe.train, tokenizer, assume
        limit = recipe.base_model.max_length or max_length or self.train.query_max_length
        self.query_limit = min(limit, self.train.query_max_length)
        self.passage_limit = min(limit, self.train.passage_max_length)

    def of(self, task: Task) -> BatchLoad:
        """The load of a task: measured if possible, unless one of `ASSUMED` is overridden or calibrated."""
        fixed = any(name in self.assume.overrides or name in self.assume.calibrated for name in ASSUMED)
        if self.tokenizer is None or fixed or (dataset := self._dataset(task)) is None:
            return self.assumed()
        return self._measured(task, dataset)

    def assumed(self) -> BatchLoad:
        """The load of texts that fill a fraction of their maximum length."""
        take, batch = self.assume.take, self.train.batch_size
        query = self.query_limit * take("data.query_fill", 0.15, "", "of query_max_length, a guess")
        passage = self.passage_limit * take("data.passage_fill", 0.35, "", "of passage_max_length, a guess")
        distinct = take("data.distinct", 1.0, "", "of a batch's texts; less if negatives repeat")
        padding = take("data.padding", 0.04, "", "of computed tokens; tests/benchmarks/RESULTS.md")
        counts = np.array([batch, batch * self.train.group_size]) * distinct
        tokens = counts * [query, passage]
        length = float((tokens * [query, passage]).sum() / tokens.sum())
        row_bytes = BYTES_PER_TOKEN * (query + self.train.group_size * passage)
        computed = float(tokens.sum()) / (1 - padding)
        return BatchLoad(
            float(counts.sum()), float(tokens.sum()), computed, length, row_bytes, measured=False
        )

    def _dataset(self, task: Task) -> "Dataset | None":
        """Rows of a task: the prepared corpus if it is local, else the first rows of the task's files."""
        from datasets import Dataset

        uri = Layout(self.recipe.root).corpus
        if storage.is_local(uri) and storage.is_file(storage.join(uri, "artifact.json")):
            return corpus.load_task(uri, task.name)
        if storage.is_hub(task.path):
            return None
        try:
            files = rows.data_files(task.path)
        except BoomError:
            # Rows can be counted without the files if the recipe gives their expected number.
            if task.expected_rows is None:
                raise
            return None
        raw = (row for uri in files for _, row in rows.read_raw(uri))
        num_rows = min(SCANNED_ROWS, task.limit or SCANNED_ROWS)
        usable = [row for row in map(_normalized, islice(raw, num_rows)) if row]
        return Dataset(pa.Table.from_pylist(usable, SCHEMA)) if usable else None

    def _measured(self, task: Task, dataset: "Dataset") -> BatchLoad:
        """The mean of the first batches that training would draw from a sample of a task's rows."""
        from boom_ray.data.batches import epoch_batches
        from boom_ray.data.collate import Collator

        indices = np.arange(len(dataset))
        sample = generator(self.train.seed, "plan", task.name).permutation(indices)[:SCANNED_ROWS]
        batches = epoch_batches({task.name: np.sort(sample)}, self.train.batch_size, self.train.seed, 0)
        prompt, template = self.recipe.data.prompt(task), self.recipe.data.query_template
        # Answers in other rows hardly change the number of texts, so only those of the row itself are used.
        answers, before = Collector(task.type).answers(), self.recipe.data.document_prompt or ""
        collate = Collator(
            task.name, task.type, dataset, answers, sample, prompt, template, self.train.group_size, before
        )
        measured = []
        for step, batch_rows in enumerate(batches.rows[:NUM_BATCHES]):
            batch = collate(batch_rows, self.train.seed, step)
            limits = np.where(batch.is_query, self.query_limit, self.passage_limit)
            lengths = np.minimum(self._lengths(batch.texts), limits)
            row_bytes = sum(len(text.encode()) for text in batch.texts) / len(batch_rows)
            measured.append(_load(lengths, *self._chunking, row_bytes))
        means = np.mean([[m.texts, m.tokens, m.computed, m.length, m.row_bytes] for m in measured], axis=0)
        texts, tokens, computed, length, row_bytes = means.tolist()
        return BatchLoad(texts, tokens, computed, length, row_bytes, measured=True)

    @property
    def _chunking(self) -> tuple[int, int | None]:
        """Maximum tokens of a chunk, and the number below which it is not cut to save padding; None for that
        if batches are expected to run packed, see `boom_ray.model.packing`."""
        from boom_ray.model.padded_layout import MIN_CHUNK_TOKENS, MIN_CHUNK_TOKENS_ON_GPU

        execution, most = self.train.execution, chunk_tokens(self.train)
        automatic = execution.attention == "auto" and execution.use_gpu and self.train.precision != "fp32"
        if automatic or execution.attention in ("varlen", "flash_attention_2"):
            return most, None
        return most, MIN_CHUNK_TOKENS_ON_GPU if execution.use_gpu else MIN_CHUNK_TOKENS

    def _lengths(self, texts: list[str]) -> np.ndarray:
        assert self.tokenizer is not None
        longest = max(self.query_limit, self.passage_limit)
        ids = self.tokenizer(texts, truncation=True, max_length=longest, return_attention_mask=False)
        return np.array([len(one) for one in ids["input_ids"]])

    def evaluation(self, evaluate: Evaluate) -> list[BatchLoad]:
        """The texts of each retrieval task that a recipe is evaluated on; tasks on the hub are left out."""
        if not evaluate.data or storage.is_hub(evaluate.data):
            return []
        suffix = "corpus.jsonl"
        names = [name for name in storage.list_files(evaluate.data) if name.endswith(suffix)]
        uris = [storage.join(evaluate.data, name.removesuffix(suffix)).rstrip("/") for name in names]
        limit = evaluate.max_length or self.recipe.base_model.max_length or self.passage_limit
        return [self._evaluation_task(uri, limit) for uri in uris]

    def _evaluation_task(self, uri: str, limit: int) -> BatchLoad:
        """The load of one task, from a sample of its texts, in the chunks that the evaluation makes."""
        from boom_ray.model.encoder import CHUNK_TOKENS
        from boom_ray.model.padded_layout import MIN_CHUNK_TOKENS

        texts = [
            row["text"]
            for name in ("corpus.jsonl", "queries.jsonl")
            for row in beir.read_rows(storage.join(uri, name)).values()
        ]
        sample = generator(0, "plan", uri).permutation(len(texts))[:NUM_TEXTS]
        if self.tokenizer is None:
            lengths = np.full(len(sample), limit * self.assumed().length / self.passage_limit)
        else:
            lengths = np.minimum(self._lengths([texts[index] for index in sample]), limit)
        least = None if self.recipe.evaluate.execution.use_gpu else MIN_CHUNK_TOKENS
        load, scale = _load(lengths, CHUNK_TOKENS, least, 0.0), len(texts) / max(1, len(sample))
        measured = self.tokenizer is not None
        return BatchLoad(len(texts), load.tokens * scale, load.computed * scale, load.length, 0.0, measured)


def _load(lengths: np.ndarray, most: int, least: int | None, row_bytes: float) -> BatchLoad:
    """The load of texts with these lengths, in chunks of `least` to `most` tokens; packed without `least`."""
    from boom_ray.model.padded_layout import chunk_by_padded_tokens

    padded = np.array(lengths, dtype=float)
    if least is not None:
        for chunk in chunk_by_padded_tokens(lengths, most, least):
            padded[chunk] = lengths[chunk].max()
    computed = float(padded.sum())
    length = float((padded**2).sum() / computed)
    return BatchLoad(len(lengths), float(lengths.sum()), computed, length, row_bytes, measured=True)


def _normalized(raw: Any) -> dict[str, Any] | None:
    """A row as training reads it, or None if it is bad."""
    if isinstance(raw, BadRow):
        return None
    try:
        return normalize(raw)[0]
    except BadRow:
        return None

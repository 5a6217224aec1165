"""The texts and tokens of a global batch of each task, and of each evaluation task.

They are measured on a few batches if the data and the base model's tokenizer are readable, else assumed from
the recipe's maximum lengths.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
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
from boom_ray.planner.passes import SampledBatch, layout, work_of
from boom_ray.recipe import Evaluate, Recipe, Task
from boom_ray.runs.layout import Layout

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

SCANNED_ROWS, NUM_BATCHES, NUM_TEXTS = 4096, 3, 256
ASSUMED = ("data.query_fill", "data.passage_fill", "data.distinct")
BYTES_PER_TOKEN = 4.5


@dataclass(frozen=True)
class TaskTexts:
    """The texts of a task.

    Attributes:
        batches: Some global batches.
        row_bytes: UTF-8 bytes of one row.
        measured: Whether these numbers come from the data.
    """

    batches: list[SampledBatch]
    row_bytes: float
    measured: bool

    @property
    def texts(self) -> float:
        """Distinct texts of the mean batch."""
        return fmean(len(batch.lengths) for batch in self.batches)

    @property
    def tokens(self) -> float:
        """Tokens of the mean batch, without padding."""
        return fmean(float(batch.lengths.sum()) for batch in self.batches)


@dataclass(frozen=True)
class BatchMix:
    """The global batches of a bag.

    Attributes:
        shares: Sampled batches, each with its share of all batches; the shares sum to 1.
    """

    shares: list[tuple[float, SampledBatch]]

    @classmethod
    def of(cls, texts: Mapping[str, TaskTexts], num_batches: Mapping[str, int]) -> "BatchMix":
        """The mix of a bag.

        Args:
            texts: Those of each task.
            num_batches: Global batches of each task of the bag.
        """
        total = sum(num_batches.values())
        return cls(
            [
                (count / total / len(texts[task].batches), batch)
                for task, count in num_batches.items()
                for batch in texts[task].batches
            ]
        )

    def mean(self, value: Callable[[SampledBatch], float]) -> float:
        """The mean of a value over all batches."""
        return sum(share * value(batch) for share, batch in self.shares)

    @property
    def tokens(self) -> float:
        """Tokens of the mean batch, without padding."""
        return self.mean(lambda batch: float(batch.lengths.sum()))


@dataclass(frozen=True)
class EncodedTexts:
    """Texts that are embedded once.

    Attributes:
        texts: Number of texts.
        tokens: Tokens of the texts, truncated to their maximum length.
        computed: Tokens including padding.
        length: Padded length of the text of a token, mean over computed tokens.
    """

    texts: float
    tokens: float
    computed: float
    length: float


class TextSampler:
    """Measures or assumes global batches of each task of a recipe.

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

    def of(self, task: Task) -> TaskTexts:
        """The texts of a task: measured if possible, unless one of `ASSUMED` is overridden or calibrated."""
        fixed = any(name in self.assume.overrides or name in self.assume.calibrated for name in ASSUMED)
        if self.tokenizer is None or fixed or (dataset := self._dataset(task)) is None:
            return self.assumed()
        return self._measured(task, dataset)

    def assumed(self) -> TaskTexts:
        """Texts that fill a fraction of their maximum length, all of one side the same."""
        take, batch = self.assume.take, self.train.batch_size
        query = self.query_limit * take("data.query_fill", 0.15, "", "of query_max_length, a guess")
        passage = self.passage_limit * take("data.passage_fill", 0.35, "", "of passage_max_length, a guess")
        distinct = take("data.distinct", 1.0, "", "of a batch's texts; less if negatives repeat")
        counts = np.rint(np.array([batch, batch * self.train.group_size]) * distinct).astype(int)
        lengths = np.concatenate([_whole(query, counts[0]), _whole(passage, counts[1])])
        row_bytes = BYTES_PER_TOKEN * (query + self.train.group_size * passage)
        return TaskTexts([SampledBatch(lengths, BYTES_PER_TOKEN * lengths)], row_bytes, measured=False)

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

    def _measured(self, task: Task, dataset: "Dataset") -> TaskTexts:
        """The first batches that training would draw from a sample of a task's rows."""
        from boom_ray.data.batches import epoch_batches
        from boom_ray.data.collate import Collator
        from boom_ray.train.share import sizes_of

        indices = np.arange(len(dataset))
        sample = generator(self.train.seed, "plan", task.name).permutation(indices)[:SCANNED_ROWS]
        batches = epoch_batches({task.name: np.sort(sample)}, self.train.batch_size, self.train.seed, 0)
        prompt, template = self.recipe.data.prompt(task), self.recipe.data.query_template
        # Answers in other rows hardly change the number of texts, so only those of the row itself are used.
        answers, before = Collector(task.type).answers(), self.recipe.data.document_prompt or ""
        collate = Collator(
            task.name, task.type, dataset, answers, sample, prompt, template, self.train.group_size, before
        )
        sampled, row_bytes = [], []
        for step, batch_rows in enumerate(batches.rows[:NUM_BATCHES]):
            batch = collate(batch_rows, self.train.seed, step)
            limits = np.where(batch.is_query, self.query_limit, self.passage_limit)
            sizes = sizes_of(batch.texts)
            sampled.append(SampledBatch(np.minimum(self._lengths(batch.texts), limits), sizes))
            row_bytes.append(float(sizes.sum()) / len(batch_rows))
        return TaskTexts(sampled, fmean(row_bytes), measured=True)

    def _lengths(self, texts: list[str]) -> np.ndarray:
        assert self.tokenizer is not None
        longest = max(self.query_limit, self.passage_limit)
        ids = self.tokenizer(texts, truncation=True, max_length=longest, return_attention_mask=False)
        return np.array([len(one) for one in ids["input_ids"]])

    def evaluation(self, evaluate: Evaluate) -> list[EncodedTexts]:
        """The texts of each retrieval task that a recipe is evaluated on; tasks on the hub are left out."""
        if not evaluate.data or storage.is_hub(evaluate.data):
            return []
        suffix = "corpus.jsonl"
        names = [name for name in storage.list_files(evaluate.data) if name.endswith(suffix)]
        uris = [storage.join(evaluate.data, name.removesuffix(suffix)).rstrip("/") for name in names]
        limit = evaluate.max_length or self.recipe.base_model.max_length or self.passage_limit
        return [self._evaluation_task(uri, limit) for uri in uris]

    def _evaluation_task(self, uri: str, limit: int) -> EncodedTexts:
        """The texts of one task, from a sample of them, in the chunks that the evaluation makes."""
        from boom_ray.model.encoder import CHUNK_TOKENS, CHUNK_TOKENS_ON_GPU

        texts = [
            row["text"]
            for name in ("corpus.jsonl", "queries.jsonl")
            for row in beir.read_rows(storage.join(uri, name)).values()
        ]
        sample = generator(0, "plan", uri).permutation(len(texts))[:NUM_TEXTS]
        if self.tokenizer is None:
            passages = self.assume.take("data.passage_fill", 0.35, "", "of passage_max_length, a guess")
            lengths = _whole(limit * passages, len(sample))
        else:
            lengths = np.minimum(self._lengths([texts[index] for index in sample]), limit)
        on_gpu = self.recipe.evaluate.execution.use_gpu
        arranged = layout(packed=on_gpu, on_gpu=on_gpu)
        chunks = arranged.chunks(lengths, CHUNK_TOKENS_ON_GPU if on_gpu else CHUNK_TOKENS)
        tokens, squares = work_of(arranged, lengths, chunks)
        scale = len(texts) / max(1, len(sample))
        return EncodedTexts(len(texts), float(lengths.sum()) * scale, tokens * scale, squares / tokens)


def _whole(mean: float, count: int) -> np.ndarray:
    """[count] int64 numbers of tokens, at least 1, next to a mean that is not whole."""
    return np.maximum(1, np.diff(np.rint(mean * np.arange(count + 1)).astype(int)))


def _normalized(raw: Any) -> dict[str, Any] | None:
    """A row as training reads it, or None if it is bad."""
    if isinstance(raw, BadRow):
        return None
    try:
        return normalize(raw)[0]
    except BadRow:
        return None

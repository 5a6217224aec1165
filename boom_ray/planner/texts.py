"""How many texts and tokens a global batch of each task holds: measured on some batches where the data is at
hand, else assumed from the maximum lengths."""

import json
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from boom_ray import storage
from boom_ray.data import corpus, rows
from boom_ray.data.bags import generator
from boom_ray.errors import BoomError
from boom_ray.planner.assumptions import Assumptions
from boom_ray.recipe import Evaluate, Recipe, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCANNED_ROWS, NUM_BATCHES, NUM_TEXTS = 4096, 3, 256
ASSUMED = ("data.query_fill", "data.passage_fill", "data.distinct", "data.padding")


@dataclass(frozen=True)
class Load:
    """Texts and tokens.

    Attributes:
        texts: Distinct ones.
        tokens: Of them, cut at their maximum length.
        computed: With the padding that they are computed with.
        length: Of the padded text that a token is in, mean over computed tokens.
        row_bytes: Text of one row.
        measured: Whether these are numbers of the data.
    """

    texts: float
    tokens: float
    computed: float
    length: float
    row_bytes: float
    measured: bool


class Loads:
    """The mean global batch of each task of a recipe.

    Args:
        max_length: Tokens that the base model takes.
        tokenizer: Of the base model, if it is at hand.
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

    def of(self, task: Task) -> Load:
        """The load of a task: measured, unless its data or the tokenizer is not here, or is given."""
        given = any(name in self.assume.given for name in ASSUMED)
        if self.tokenizer is None or given or (found := self._rows(task)) is None:
            return self.assumed()
        return self._measured(task, found)

    def assumed(self) -> Load:
        """A batch of texts that fill a part of their maximum length."""
        take, batch = self.assume.take, self.train.batch_size
        query = self.query_limit * take("data.query_fill", 0.15, "", "of query_max_length, a guess")
        passage = self.passage_limit * take("data.passage_fill", 0.35, "", "of passage_max_length, a guess")
        distinct = take("data.distinct", 1.0, "", "of a batch's texts; fewer where negatives repeat")
        padding = take("data.padding", 0.04, "", "of computed tokens; see tests/benchmarks/RESULTS.md")
        counts = np.array([batch, batch * self.train.group_size]) * distinct
        tokens = counts * [query, passage]
        length = float((tokens * [query, passage]).sum() / tokens.sum())
        row = 4.5 * (query + self.train.group_size * passage)
        computed = float(tokens.sum()) / (1 - padding)
        return Load(float(counts.sum()), float(tokens.sum()), computed, length, row, measured=False)

    def _rows(self, task: Task) -> Any:
        """Rows of a task: of the prepared corpus if it is on this machine, else the first of its files."""
        from datasets import Dataset

        place = storage.join(self.recipe.root, "corpus")
        if storage.is_local(place) and storage.is_file(storage.join(place, "artifact.json")):
            return corpus.load_task(place, task.name)
        if storage.is_hub(task.path):
            return None
        try:
            files = rows.data_files(task.path)
        except BoomError:
            if task.expected_rows is None:
                raise
            return None
        raw = (row for uri in files for _, row in rows.read_raw(uri))
        usable = [
            row for row in map(_normalized, islice(raw, min(SCANNED_ROWS, task.limit or SCANNED_ROWS))) if row
        ]
        return Dataset.from_list(usable, features=None) if usable else None

    def _measured(self, task: Task, dataset: Any) -> Load:
        from boom_ray.data.batches import epoch_batches
        from boom_ray.data.collate import Collator

        everything = np.arange(len(dataset))
        some = generator(self.train.seed, "plan", task.name).permutation(everything)[:SCANNED_ROWS]
        batches = epoch_batches({task.name: np.sort(some)}, self.train.batch_size, self.train.seed, 0)
        prompt, template = self.recipe.data.prompt(task), self.recipe.data.query_template
        collate = Collator(task.name, task.type, dataset, some, prompt, template, self.train.group_size)
        measured = []
        for step, chosen in enumerate(batches.rows[:NUM_BATCHES]):
            batch = collate(chosen, self.train.seed, step)
            limits = np.where(batch.is_query, self.query_limit, self.passage_limit)
            lengths = np.minimum(self._lengths(batch.texts), limits)
            row_bytes = sum(len(text.encode()) for text in batch.texts) / len(chosen)
            measured.append(_load(lengths, self.train.execution.chunk_tokens, self._packed, row_bytes))
        means = np.mean([[m.texts, m.tokens, m.computed, m.length, m.row_bytes] for m in measured], axis=0)
        texts, tokens, computed, length, row_bytes = means.tolist()
        return Load(texts, tokens, computed, length, row_bytes, measured=True)

    @property
    def _packed(self) -> bool:
        return self.train.execution.attention == "flash_attention_2"

    def _lengths(self, texts: list[str]) -> np.ndarray:
        assert self.tokenizer is not None
        longest = max(self.query_limit, self.passage_limit)
        ids = self.tokenizer(texts, truncation=True, max_length=longest, return_attention_mask=False)
        return np.array([len(one) for one in ids["input_ids"]])

    def evaluation(self, evaluate: Evaluate) -> list[Load]:
        """Texts and tokens of every search a recipe is evaluated on, if at hand; no other tasks."""
        if not evaluate.data or storage.is_hub(evaluate.data):
            return []
        suffix = "corpus.jsonl"
        names = [name for name in storage.list_files(evaluate.data) if name.endswith(suffix)]
        places = [storage.join(evaluate.data, name.removesuffix(suffix)).rstrip("/") for name in names]
        limit = evaluate.max_length or self.recipe.base_model.max_length or self.passage_limit
        return [self._evaluation_task(place, limit) for place in places]

    def _evaluation_task(self, place: str, limit: int) -> Load:
        texts = [
            json.loads(line).get("text") or ""
            for name in ("corpus.jsonl", "queries.jsonl")
            for line in storage.read_bytes(storage.join(place, name)).splitlines()
            if line.strip()
        ]
        some = generator(0, "plan", place).permutation(len(texts))[:NUM_TEXTS]
        if self.tokenizer is None:
            lengths = np.full(len(some), limit * self.assumed().length / self.passage_limit)
        else:
            lengths = np.minimum(self._lengths([texts[index] for index in some]), limit)
        load, share = _load(lengths, 4096, False, 0.0), len(texts) / max(1, len(some))
        return Load(
            len(texts),
            load.tokens * share,
            load.computed * share,
            load.length,
            0.0,
            self.tokenizer is not None,
        )


def _load(lengths: np.ndarray, chunk_tokens: int, packed: bool, row_bytes: float) -> Load:
    """Of texts with so many tokens, computed in chunks as training does."""
    from boom_ray.model.encoder import chunk_by_tokens

    padded = np.array(lengths, dtype=float)
    if not packed:
        for chunk in chunk_by_tokens(lengths, chunk_tokens):
            padded[chunk] = lengths[chunk].max()
    computed = float(padded.sum())
    length = float((padded**2).sum() / computed)
    return Load(len(lengths), float(lengths.sum()), computed, length, row_bytes, measured=True)


def _normalized(raw: Any) -> dict[str, Any] | None:
    """A row as training sees it, or None for a bad one."""
    if isinstance(raw, rows.BadRow):
        return None
    try:
        return rows.normalize(raw)[0]
    except rows.BadRow:
        return None

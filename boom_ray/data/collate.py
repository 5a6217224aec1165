"""A global batch for the loss: each distinct text once, and indices into these texts.

Negatives repeat inside a batch. Encoding the distinct texts and gathering by index gives the same gradient
as encoding every occurrence, for a fraction of the work: a classification task with 8 labels has at most 8
distinct passages.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from boom_ray.data.answers import Answers, contains, hash_of, hashes_of
from boom_ray.data.bags import generator
from boom_ray.recipe import OWN_NEGATIVES, TaskType

if TYPE_CHECKING:
    from datasets import Dataset

ATTEMPTS_PER_FILL = 8
NO_TEXT = -1

Row = dict[str, Any]
Scored = tuple[str, float]


@dataclass(frozen=True)
class Batch:
    """One global batch of B rows with groups of G passages (column 0 is the positive).

    Attributes:
        task: Name of the task all rows are of.
        type: Type of that task.
        texts: n distinct texts, prompts included.
        prompts: The prompt that each of them begins with.
        is_query: [n] bool, texts that are cut at the query's maximum length.
        queries: [B] int64, indices into `texts`.
        candidates: [B, G] int64, indices into `texts`; `NO_TEXT` where a row has no further negative.
        positives: [p, 2] int64, pairs of a row and an index into `texts`: the passages that are positives of
            its query in any row of the task, which are never negatives of it. Sorted by row.
        scores: [B, G] float32, the teacher's score of each candidate; NaN where there is none.
    """

    task: str
    type: TaskType
    texts: list[str]
    prompts: list[str]
    is_query: np.ndarray
    queries: np.ndarray
    candidates: np.ndarray
    positives: np.ndarray
    scores: np.ndarray


class _Texts:
    """Distinct (side, text) pairs in order of first occurrence, and the hashes of the passages among them."""

    def __init__(self) -> None:
        self.index: dict[tuple[bool, str], int] = {}
        self.passages: dict[int, int] = {}
        self.prompts: list[str] = []

    def add(self, prompt: str, text: str, is_query: bool) -> int:
        index = self.index.setdefault((is_query, prompt + text), len(self.index))
        if index == len(self.prompts):
            self.prompts.append(prompt)
        return index

    def add_passage(self, before: str, text: str, is_query: bool) -> int:
        index = self.add(before, text, is_query)
        self.passages[index] = hash_of(text)
        return index


@dataclass(frozen=True)
class Collator:
    """Draws the groups of one task.

    Attributes:
        task: Name of the task.
        type: Its type: `sts` is symmetric, so its passages get the prompt and the length of queries.
        dataset: All rows of the task.
        answers: The positives of its queries in all rows.
        rows: The rows of the bag, int64; negatives that fill a group are drawn from them.
        prompt: Text before every query whose row has no instruction of its own.
        template: Builds that text from a row's own instruction (`{instruction}`, with an empty `{query}`).
        group_size: Passages per query.
        document_prompt: Text before every passage, unless the type is symmetric.
    """

    task: str
    type: TaskType
    dataset: "Dataset"
    answers: Answers
    rows: np.ndarray
    prompt: str
    template: str
    group_size: int
    document_prompt: str = ""

    def __call__(self, rows: np.ndarray, seed: int, step: int) -> Batch:
        """Assemble the batch of the given rows; draws depend on (seed, step) alone."""
        draw = generator(seed, "groups", step)
        chosen = _rows_of(self.dataset[rows.tolist()])
        right = [self.answers.of(row) for row in chosen]
        groups = [
            [_positive(row, draw), *self._negatives(row, answers, draw)]
            for row, answers in zip(chosen, right, strict=True)
        ]
        if self.type not in OWN_NEGATIVES:
            self._fill(groups, chosen, right, draw)
        texts = _Texts()
        symmetric = self.type == "sts"
        queries, candidates = [], []
        scores = np.full((len(rows), self.group_size), np.nan, dtype=np.float32)
        for number, (row, group) in enumerate(zip(chosen, groups, strict=True)):
            own = row["prompt"]
            prompt = self.prompt if own is None else self.template.format(instruction=own, query="")
            before = prompt if symmetric else self.document_prompt
            queries.append(texts.add(prompt, row["query"], True))
            ids = [texts.add_passage(before, text, symmetric) for text, _ in group]
            scores[number, : len(group)] = [score for _, score in group]
            candidates.append(ids + [NO_TEXT] * (self.group_size - len(ids)))
        return Batch(
            task=self.task,
            type=self.type,
            texts=[text for _, text in texts.index],
            prompts=texts.prompts,
            is_query=np.array([is_query for is_query, _ in texts.index]),
            queries=np.array(queries),
            candidates=np.array(candidates),
            positives=_positives(right, texts.passages),
            scores=scores,
        )

    def _negatives(self, row: Row, right: np.ndarray, draw: np.random.Generator) -> list[Scored]:
        """The row's own negatives, drawn if they are more than needed.

        Args:
            right: Sorted hashes of the answers of the row's query, none of which is a negative.
        """
        wanted, own = self.group_size - 1, row["neg"] or []
        usable = np.flatnonzero(~contains(right, hashes_of(own)))
        scores = row["neg_scores"] or [np.nan] * len(own)
        chosen = (
            draw.choice(usable, wanted, replace=False) if len(usable) >= wanted else draw.permutation(usable)
        )
        return [(own[index], scores[index]) for index in chosen]

    def _fill(
        self, groups: list[list[Scored]], rows: list[Row], right: list[np.ndarray], draw: np.random.Generator
    ) -> None:
        """Complete groups by positives of other rows of the bag: neither answers nor among a row's own texts.

        Each attempt reads one row for every missing negative of the batch, all rows at once.
        """
        positives = self.dataset.select_columns(["pos"])
        taken = [{*(row["neg"] or ())} for row in rows]
        for _ in range(ATTEMPTS_PER_FILL):
            missing = np.repeat(np.arange(len(groups)), [self.group_size - len(group) for group in groups])
            if not len(missing):
                return
            others = positives[draw.choice(self.rows, len(missing)).tolist()]["pos"]
            for number, texts in zip(missing.tolist(), others, strict=True):
                text = texts[draw.integers(len(texts))]
                if text not in taken[number] and not contains(right[number], hashes_of([text]))[0]:
                    taken[number].add(text)
                    groups[number].append((text, np.nan))


def _rows_of(columns: dict[str, list[Any]]) -> list[Row]:
    """The rows of a batch that is read by column."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _positives(right: list[np.ndarray], passages: dict[int, int]) -> np.ndarray:
    """Pairs (row, passage) whose passage is an answer of the row's query: [p, 2] int64.

    Args:
        right: Hashes of the answers of each row's query.
        passages: Hash of each passage of the batch, by index.
    """
    indices = np.array(list(passages))
    hashes = np.array(list(passages.values()), dtype=np.uint64)
    order = np.argsort(hashes, kind="stable")
    answers, rows = np.concatenate(right), np.repeat(np.arange(len(right)), [*map(len, right)])
    first = np.searchsorted(hashes[order], answers)
    counts = np.searchsorted(hashes[order], answers, side="right") - first
    # Each answer is at the positions first, first + 1, … of the sorted passages, as often as it occurs.
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.column_stack([np.repeat(rows, counts), indices[order[np.repeat(first, counts) + within]]])


def _positive(row: Row, draw: np.random.Generator) -> Scored:
    index = draw.integers(len(row["pos"]))
    return row["pos"][index], (row["pos_scores"] or [np.nan] * len(row["pos"]))[index]

"""A global batch for the loss: each distinct text once, and indices into these texts.

Negatives repeat inside a batch. Encoding the distinct texts and gathering by index gives the same gradient
as encoding every occurrence, for a fraction of the work: a classification task with 8 labels has at most 8
distinct passages.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from boom_ray.data.answers import Answers, contains, hash_of, hashes_of
from boom_ray.data.bags import generator
from boom_ray.recipe import OWN_NEGATIVES, TaskType

if TYPE_CHECKING:
    from datasets import Dataset

ATTEMPTS_PER_FILL = 8
NO_TEXT = -1

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
        positives: Per row, the indices of all passages that are positives of its query in any row of the
            task; they are never negatives of it.
        scores: [B, G] float32, the teacher's score of each candidate; NaN where there is none.
    """

    task: str
    type: TaskType
    texts: list[str]
    prompts: list[str]
    is_query: np.ndarray
    queries: np.ndarray
    candidates: np.ndarray
    positives: list[np.ndarray]
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
        texts = _Texts()
        symmetric = self.type == "sts"
        queries, candidates, right = [], [], []
        scores = np.full((len(rows), self.group_size), np.nan, dtype=np.float32)
        for number, row in enumerate(self.dataset.select(rows.tolist())):
            own = row["prompt"]
            prompt = self.prompt if own is None else self.template.format(instruction=own, query="")
            before = prompt if symmetric else self.document_prompt
            right.append(self.answers.of(row))
            group = [_positive(row, draw), *self._negatives(row, right[-1], draw)]
            queries.append(texts.add(prompt, row["query"], True))
            ids = [texts.add_passage(before, text, symmetric) for text, _ in group]
            scores[number, : len(group)] = [score for _, score in group]
            candidates.append(ids + [NO_TEXT] * (self.group_size - len(ids)))
        passages = np.array(list(texts.passages))
        hashes = np.array(list(texts.passages.values()), dtype=np.uint64)
        return Batch(
            task=self.task,
            type=self.type,
            texts=[text for _, text in texts.index],
            prompts=texts.prompts,
            is_query=np.array([is_query for is_query, _ in texts.index]),
            queries=np.array(queries),
            candidates=np.array(candidates),
            positives=[passages[contains(answers, hashes)] for answers in right],
            scores=scores,
        )

    def _negatives(self, row: dict, right: np.ndarray, draw: np.random.Generator) -> list[Scored]:
        """The row's own negatives, and if they are too few, positives of other rows where the type allows it.

        Args:
            right: Sorted hashes of the answers of the row's query, none of which is a negative.
        """
        wanted, own = self.group_size - 1, row["neg"] or []
        usable = np.flatnonzero(~contains(right, hashes_of(own)))
        scores = row["neg_scores"] or [np.nan] * len(own)
        chosen = (
            draw.choice(usable, wanted, replace=False) if len(usable) >= wanted else draw.permutation(usable)
        )
        group = [(own[index], scores[index]) for index in chosen]
        if self.type not in OWN_NEGATIVES:
            group += [(text, np.nan) for text in self._others(wanted - len(group), {*own}, right, draw)]
        return group

    def _others(self, wanted: int, own: set[str], right: np.ndarray, draw: np.random.Generator) -> list[str]:
        """Up to `wanted` positives of rows of the bag that are neither answers nor among `own`."""
        taken, texts = {*own}, list[str]()
        for _ in range(ATTEMPTS_PER_FILL * wanted):
            if len(texts) == wanted:
                break
            other = self.dataset[int(draw.choice(self.rows))]["pos"]
            text = other[draw.integers(len(other))]
            if text not in taken and not contains(right, hashes_of([text]))[0]:
                taken.add(text)
                texts.append(text)
        return texts


def _positive(row: dict, draw: np.random.Generator) -> Scored:
    index = draw.integers(len(row["pos"]))
    return row["pos"][index], (row["pos_scores"] or [np.nan] * len(row["pos"]))[index]

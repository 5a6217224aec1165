"""An example of a task, and the parts of the corpus that it can be in.

Examples are shuffled and assigned by hashes of their texts, so that all machines build the same corpus, and
an example keeps its part if others come or go.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

Part = Literal["train", "development", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
TRAIN_PERCENT, DEVELOPMENT_PERCENT = 70, 10
MIN_CHARACTERS, MAX_CHARACTERS = 12, 500  # 64 tokens are at most about 400 characters


@dataclass(frozen=True)
class Example:
    """A query and the documents that answer it.

    Attributes:
        unit: What the texts are about (a source package, a file, an article): all examples of a unit, of all
            tasks, are in the same part, so that no test asks for what was trained on in other words.
        group: Where hard negatives come from: examples that are similar and about something else.
    """

    query: str
    documents: tuple[str, ...]
    unit: str
    group: str

    @property
    def part(self) -> Part:
        """The part of the corpus of a task that is trained on."""
        position = int(digest(self.unit), 16) % 100
        if position < TRAIN_PERCENT:
            return "train"
        return "development" if position < TRAIN_PERCENT + DEVELOPMENT_PERCENT else "test"


def digest(*parts: str) -> str:
    """A hash that is the same on every machine."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def shuffled(examples: Iterable[Example]) -> list[Example]:
    """The examples in the order of their hashes."""
    return sorted(examples, key=lambda example: digest("order", example.query, *example.documents))


def cleaned(examples: Iterable[Example]) -> Iterator[Example]:
    """Examples on one line, cut to `MAX_CHARACTERS`; none that is too short or equals its answer."""
    for example in examples:
        query, *documents = (" ".join(text.split()) for text in (example.query, *example.documents))
        whole = all(len(text) >= MIN_CHARACTERS for text in documents) and len(query) > 2
        if whole and query.casefold() not in {text.casefold() for text in documents}:
            cut = tuple(text[:MAX_CHARACTERS] for text in documents)
            yield Example(query[:MAX_CHARACTERS], cut, example.unit, example.group)


def distinct(examples: Iterable[Example], labels: bool = False) -> Iterator[Example]:
    """Examples with a query that no earlier one has, and with new documents unless documents are labels."""
    seen: set[str] = set()
    for example in examples:
        texts = {example.query.casefold()}
        texts |= set() if labels else {text.casefold() for text in example.documents}
        if seen.isdisjoint(texts):
            yield example
        seen |= texts

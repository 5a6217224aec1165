"""Token ids of many texts as one flat array, from the tokenizer to the transformer."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np


@dataclass(frozen=True)
class Tokens:
    """Token ids of n texts, one text after another.

    Attributes:
        ids: [sum of lengths] int32.
        lengths: [n] int64, number of ids of each text.
        skipped: [n] int64, number of first ids of each text whose states are not pooled: those of a prompt.
    """

    ids: np.ndarray
    lengths: np.ndarray
    skipped: np.ndarray

    @classmethod
    def of(cls, token_ids: Sequence[Sequence[int]], skipped: int | Sequence[int] = 0) -> "Tokens":
        """Flatten the ids of each text.

        Args:
            skipped: Number of first ids that are not pooled, of all texts or of each.
        """
        lengths = np.fromiter(map(len, token_ids), np.int64, len(token_ids))
        ids = np.fromiter(chain.from_iterable(token_ids), np.int32, int(lengths.sum()))
        return cls(ids, lengths, np.broadcast_to(np.asarray(skipped, np.int64), lengths.shape).copy())

    @classmethod
    def concatenate(cls, parts: "Sequence[Tokens]") -> "Tokens":
        """The texts of all parts (at least one), in their order."""
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.skipped for part in parts]),
        )

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.lengths)

    def __getitem__(self, texts: np.ndarray | slice) -> "Tokens":
        """The chosen texts, by a slice, or by an array of indices in any order and with repetitions."""
        starts = np.cumsum(self.lengths) - self.lengths
        lengths, skipped = self.lengths[texts], self.skipped[texts]
        # Position in `ids` of each wanted id: the start of its text, and its position within the text.
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return Tokens(self.ids[np.repeat(starts[texts], lengths) + within], lengths, skipped)

    def without(self, first: np.ndarray, counts: np.ndarray) -> "Tokens":
        """The texts without some of their ids.

        Args:
            first: [n] position of the first id to leave out, within each text.
            counts: [n] number of ids to leave out of each text.
        """
        starts = np.cumsum(self.lengths) - self.lengths + first
        within = np.arange(len(self.ids)) - np.repeat(starts, self.lengths)
        kept = (within < 0) | (within >= np.repeat(counts, self.lengths))
        return Tokens(self.ids[kept], self.lengths - counts, self.skipped)

    def lists(self) -> list[list[int]]:
        """The ids of each text as a list."""
        return [ids.tolist() for ids in np.split(self.ids, np.cumsum(self.lengths)[:-1])][: len(self)]

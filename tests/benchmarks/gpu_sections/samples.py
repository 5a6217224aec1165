"""Texts of the standard library with chosen numbers of tokens, and rows of them."""

from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from tests import texts

PACKAGES = ("email", "asyncio", "unittest", "http", "json", "logging")
QUERY_FILL, PASSAGE_FILL = 0.15, 0.35  # mean length over the maximum, as `boom-ray plan` assumes
SPREAD, SHORTEST = 0.8, 8  # standard deviation of the logarithm of mixed lengths; tokens
SPARE = 16  # more tokens than a full text needs: the cut at both ends may save some


def lengths(kind: str, count: int, longest: int, fill: float = PASSAGE_FILL, seed: int = 0) -> np.ndarray:
    """[count] numbers of tokens: `full`, or `mixed`, which are lognormal with a mean of `fill * longest`."""
    if kind == "full":
        return np.full(count, longest + SPARE)
    mean_of_logarithm = np.log(fill * longest) - SPREAD**2 / 2
    drawn = np.random.default_rng(seed).lognormal(mean_of_logarithm, SPREAD, count)
    return drawn.clip(SHORTEST, longest).astype(int)


def write_texts(tokenizer: PreTrainedTokenizerBase, numbers: np.ndarray, seed: int = 0) -> list[str]:
    """A text of about each number of tokens, cut from the standard library at random."""
    whole = "\n".join(" ".join(pair) for package in PACKAGES for pair in texts.functions(package))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    offsets = np.array(encoded["offset_mapping"])
    starts = np.random.default_rng(seed).integers(0, len(offsets) - numbers.max(), len(numbers))
    return [
        whole[offsets[start, 0] : offsets[start + count - 1, 1]]
        for start, count in zip(starts, numbers, strict=True)
    ]


class Row(NamedTuple):
    """A query with its positive and its hard negatives."""

    query: str
    passages: list[str]


def write_rows(
    tokenizer: PreTrainedTokenizerBase, kind: str, num_rows: int, group_size: int, longest: int
) -> list[Row]:
    """Rows whose texts are `full` or `mixed`."""
    queries = write_texts(tokenizer, lengths(kind, num_rows, longest, QUERY_FILL, seed=1), seed=1)
    passages = write_texts(tokenizer, lengths(kind, num_rows * group_size, longest, seed=2), seed=2)
    return [
        Row(query, passages[row * group_size : (row + 1) * group_size]) for row, query in enumerate(queries)
    ]

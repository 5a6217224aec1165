"""Texts as token ids: truncated at the model's limit, or split into overlapping chunks."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from boom_ray.model.tokenizer import encode
from boom_ray.model.tokens import Tokens


@dataclass(frozen=True)
class Pieces:
    """Token ids of the chunks of n texts.

    Attributes:
        tokens: Token ids of each chunk.
        text: [chunks] int64, index of each chunk's text, ascending.
    """

    tokens: Tokens
    text: np.ndarray


def cut(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    prompt: str,
    max_length: int,
    chunk: int | None,
    overlap: int,
) -> Pieces:
    """Tokenize texts, with the prompt before each chunk.

    Args:
        max_length: Maximum tokens of the model, prompt and special tokens included.
        chunk: Maximum tokens of a chunk, likewise; None truncates longer texts.
        overlap: Tokens that consecutive chunks of a text share.
    """
    if not chunk:
        tokens = encode(tokenizer, list(map(prompt.__add__, texts)), max_length)
        return Pieces(tokens, np.arange(len(texts)))
    size = min(chunk, max_length)
    empty, with_prompt = encode(tokenizer, ["", prompt], size).lengths.tolist()
    capacity = size - (with_prompt - empty)
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=capacity,
        stride=overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding=False,
    )
    text = np.array(encoded["overflow_to_sample_mapping"])
    starts, ends = _spans(encoded["offset_mapping"])
    # The characters of a chunk are tokenized again with the prompt: at the seam, tokens of prompt and text
    # may merge, and a server that is sent "prompt + chunk" must get the same ids.
    pieces = [prompt + texts[at][start:end] for at, start, end in zip(text, starts, ends, strict=True)]
    return Pieces(encode(tokenizer, pieces, size), text)


def _spans(offsets: list[list[tuple[int, int]]]) -> tuple[list[int], list[int]]:
    """First and last character of the tokens of each chunk that have any, by start and end of each token."""
    lengths = np.fromiter(map(len, offsets), np.int64, len(offsets))
    bounds = np.fromiter(chain.from_iterable(chain(*offsets, [(0, 0)])), np.int64).reshape(-1, 2)
    has_text = bounds[:, 0] != bounds[:, 1]
    first = np.cumsum(lengths) - lengths
    starts = np.minimum.reduceat(np.where(has_text, bounds[:, 0], np.iinfo(np.int64).max), first)
    ends = np.maximum.reduceat(np.where(has_text, bounds[:, 1], 0), first)
    # `reduceat` gives a chunk without tokens the values of the next one.
    return starts.tolist(), np.where(lengths, ends, 0).tolist()


def mean_of_pieces(vectors: np.ndarray, pieces: Pieces, num_texts: int) -> np.ndarray:
    """[num_texts, d] float32 of norm 1: the mean of each text's chunks, weighted by their tokens."""
    weights = pieces.tokens.lengths.astype(np.float32)
    total = np.zeros((num_texts, vectors.shape[1]), dtype=np.float32)
    np.add.at(total, pieces.text, vectors * weights[:, None])
    return total / np.linalg.norm(total, axis=1, keepdims=True).clip(min=1e-12)

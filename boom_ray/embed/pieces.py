"""Texts as token ids: cut at the model's limit, or into pieces that overlap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Pieces:
    """Token ids of the pieces of n texts.

    Attributes:
        token_ids: Of each piece.
        text: [pieces] int64, the text each is of, ascending.
    """

    token_ids: list[list[int]]
    text: np.ndarray


def cut(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    prompt: str,
    max_length: int,
    chunk: int | None,
    overlap: int,
) -> Pieces:
    """Tokenize texts with a prompt before each piece.

    Args:
        max_length: Tokens of a piece at most, prompt and special tokens included.
        chunk: Tokens of a piece at most, likewise; None cuts the end of longer texts off.
        overlap: Tokens that two pieces of a text share.
    """
    if not chunk:
        return Pieces(
            _tokenize(tokenizer, [prompt + text for text in texts], max_length), np.arange(len(texts))
        )
    size = min(chunk, max_length)
    empty, with_prompt = _tokenize(tokenizer, ["", prompt], size)
    room = size - (len(with_prompt) - len(empty))
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=room,
        stride=overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding=False,
    )
    text = np.array(encoded["overflow_to_sample_mapping"])
    pieces = []
    for number, offsets in zip(text, encoded["offset_mapping"], strict=True):
        covered = [end for pair in offsets for end in pair if pair[0] != pair[1]]
        pieces.append(prompt + (texts[number][min(covered) : max(covered)] if covered else ""))
    return Pieces(_tokenize(tokenizer, pieces, size), text)


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], limit: int) -> list[list[int]]:
    encoded = tokenizer(texts, truncation=True, max_length=limit, padding=False, return_attention_mask=False)
    return encoded["input_ids"]


def mean_of_pieces(vectors: np.ndarray, pieces: Pieces, num_texts: int) -> np.ndarray:
    """[num_texts, d] float32 of norm 1: the mean of each text's pieces, weighted by their tokens."""
    weights = np.array([len(ids) for ids in pieces.token_ids], dtype=np.float32)
    total = np.zeros((num_texts, vectors.shape[1]), dtype=np.float32)
    np.add.at(total, pieces.text, vectors * weights[:, None])
    return total / np.linalg.norm(total, axis=1, keepdims=True).clip(min=1e-12)

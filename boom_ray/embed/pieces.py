"""Texts as token ids: truncated at the model's limit, or split into overlapping chunks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

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
        return Pieces(
            Tokens.of(_tokenize(tokenizer, [prompt + text for text in texts], max_length)),
            np.arange(len(texts)),
        )
    size = min(chunk, max_length)
    empty, with_prompt = _tokenize(tokenizer, ["", prompt], size)
    capacity = size - (len(with_prompt) - len(empty))
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
    pieces = []
    # The characters of a chunk are tokenized again with the prompt: at the seam, tokens of prompt and text
    # may merge, and a server that is sent "prompt + chunk" must get the same ids.
    for number, offsets in zip(text, encoded["offset_mapping"], strict=True):
        covered = [end for pair in offsets for end in pair if pair[0] != pair[1]]
        pieces.append(prompt + (texts[number][min(covered) : max(covered)] if covered else ""))
    return Pieces(Tokens.of(_tokenize(tokenizer, pieces, size)), text)


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], limit: int) -> list[list[int]]:
    encoded = tokenizer(texts, truncation=True, max_length=limit, padding=False, return_attention_mask=False)
    return encoded["input_ids"]


def mean_of_pieces(vectors: np.ndarray, pieces: Pieces, num_texts: int) -> np.ndarray:
    """[num_texts, d] float32 of norm 1: the mean of each text's chunks, weighted by their tokens."""
    weights = pieces.tokens.lengths.astype(np.float32)
    total = np.zeros((num_texts, vectors.shape[1]), dtype=np.float32)
    np.add.at(total, pieces.text, vectors * weights[:, None])
    return total / np.linalg.norm(total, axis=1, keepdims=True).clip(min=1e-12)

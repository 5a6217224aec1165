"""One request: its body checked and turned into token ids, its vectors into the body of the answer."""

import base64
from typing import Any

import numpy as np

from boom_ray.model.encoder import Encoder
from boom_ray.serve.schema import Embedding, EmbeddingRequest, EmbeddingResponse, RequestError, Usage

MAX_INPUTS = 2048


def read_inputs(encoder: Encoder, request: EmbeddingRequest) -> list[list[int]]:
    """The token ids of every input of a request.

    Raises:
        RequestError: if an input is empty, too long or unknown to the model, or a setting does not fit it.
    """
    _check_settings(encoder, request)
    inputs: Any = request.input
    if isinstance(inputs, str) or (inputs and isinstance(inputs[0], int)):
        inputs = [inputs]
    if not inputs or not all(inputs):
        raise RequestError(422, "input is empty, or holds an empty text or list", "input", "empty_input")
    if len(inputs) > MAX_INPUTS:
        message = f"input holds {len(inputs)} texts; allowed: {MAX_INPUTS} in one request"
        raise RequestError(422, message, "input", "too_many_inputs")
    if isinstance(inputs[0], str):
        _check_unicode(inputs)
        prompt = encoder.spec.prompts[request.prompt_name] if request.prompt_name else ""
        return _tokenize(encoder, [prompt + text for text in inputs], request.truncate)
    return _check_tokens(encoder, inputs, request)


def _check_settings(encoder: Encoder, request: EmbeddingRequest) -> None:
    dimension, prompts = encoder.transformer.config.hidden_size, encoder.spec.prompts
    if request.dimensions is not None and request.dimensions > dimension:
        message = f"dimensions is {request.dimensions}; the model has {dimension}"
        raise RequestError(422, message, "dimensions", "too_many_dimensions")
    if request.prompt_name is not None and request.prompt_name not in prompts:
        message = f"no prompt {request.prompt_name!r}; the model has: {', '.join(sorted(prompts)) or 'none'}"
        raise RequestError(422, message, "prompt_name", "unknown_prompt")


def _check_unicode(texts: list[str]) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        message = "input holds half of a surrogate pair, which is no valid Unicode"
        raise RequestError(422, message, "input", "invalid_unicode") from error


def _tokenize(encoder: Encoder, texts: list[str], truncate: bool) -> list[list[int]]:
    if truncate:
        return encoder.tokenize(texts)
    token_ids = encoder.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
    _check_lengths(token_ids, encoder.spec.max_length)
    return token_ids


def _check_tokens(encoder: Encoder, token_ids: list[list[int]], request: EmbeddingRequest) -> list[list[int]]:
    limit, vocabulary = encoder.spec.max_length, encoder.transformer.config.vocab_size
    if request.prompt_name is not None:
        raise RequestError(422, "a prompt goes before texts, not before token ids", "prompt_name")
    if not all(0 <= token < vocabulary for ids in token_ids for token in ids):
        message = f"input holds a token id that is not in the model's vocabulary of {vocabulary}"
        raise RequestError(422, message, "input", "unknown_token")
    if request.truncate:
        return [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in token_ids]
    _check_lengths(token_ids, limit)
    return token_ids


def _check_lengths(token_ids: list[list[int]], limit: int) -> None:
    longest = max(range(len(token_ids)), key=lambda index: len(token_ids[index]))
    if len(token_ids[longest]) > limit:
        message = (
            f"input {longest} has {len(token_ids[longest])} tokens; the model takes {limit}. "
            'Shorten it, or send "truncate": true'
        )
        raise RequestError(422, message, "input", "context_length_exceeded")


def shorten(vectors: np.ndarray, dimensions: int | None) -> np.ndarray:
    """The first `dimensions` of [n, d] vectors, normalized again; as they are for None."""
    if dimensions is None:
        return vectors
    leading = vectors[:, :dimensions]
    return leading / np.maximum(np.linalg.norm(leading, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def respond(
    vectors: np.ndarray, token_ids: list[list[int]], request: EmbeddingRequest, model: str
) -> EmbeddingResponse:
    """The body of a successful answer."""
    encoded: list[Any] = vectors.tolist()
    if request.encoding_format == "base64":
        encoded = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    tokens = sum(map(len, token_ids))
    return EmbeddingResponse(
        data=[Embedding(index=index, embedding=vector) for index, vector in enumerate(encoded)],
        model=model,
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
    )

"""From the inputs of a request to token ids, checked."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from boom_ray import storage
from boom_ray.model import directory, tokenizer
from boom_ray.model.spec import EncoderSpec
from boom_ray.model.tokens import Tokens
from boom_ray.serve.limits import MAX_INPUTS
from boom_ray.serve.schema import EmbeddingRequest, RequestError
from boom_ray.serve.tei_schema import DecodeRequest, TokenizeRequest, TokenSpan
from boom_ray.serve.token_frame import TokenFrame

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RequestReader:
    """Turns inputs into token ids of one model. For one thread: a tokenizer keeps truncation as state.

    Attributes:
        tokenizer: Tokenizer of the model.
        truncation_side: The end that it cuts unless a request says otherwise, `left` or `right`.
        frame: The special tokens that it adds.
        spec: Maximum length and prompts of the model.
        dimensions: Length of its embeddings.
    """

    tokenizer: "PreTrainedTokenizerBase"
    truncation_side: str
    frame: TokenFrame
    spec: EncoderSpec
    dimensions: int

    @classmethod
    def load(cls, uri: str) -> "RequestReader":
        """The reader of a model directory, without its weights."""
        local = storage.local_directory(uri)
        spec = directory.read_spec(local)
        loaded = tokenizer.load(local, spec)
        dimensions = directory.dimension_of(local)
        return cls(loaded, loaded.truncation_side, TokenFrame.of(loaded), spec, dimensions)

    def prompt_name(self, request: EmbeddingRequest) -> str | None:
        """The name of the prompt that a request selects.

        Every model has `query` and `document`, as in sentence-transformers; one that its files lack is empty.

        Raises:
            RequestError: if the model has no such prompt, or the request selects two.
        """
        name, prompts = request.prompt_name or request.input_type, self.spec.prompts
        if request.prompt_name and request.input_type not in (None, request.prompt_name):
            message = "prompt_name and input_type differ; send one of them"
            raise RequestError(422, message, "input_type", "two_prompts")
        if name is not None and name not in {"query", "document", *prompts}:
            message = f"no prompt {name!r}; the model has: {', '.join(sorted(prompts)) or 'none'}"
            raise RequestError(422, message, "prompt_name", "unknown_prompt")
        return name

    def read(self, request: EmbeddingRequest) -> Tokens:
        """The token ids of every input of a request.

        Raises:
            RequestError: if an input is empty, too long or not in the vocabulary, or an option does not fit
                the model.
        """
        prompt = self.prompt_name(request)
        if request.dimensions is not None and request.dimensions > self.dimensions:
            message = f"dimensions is {request.dimensions}; the model has {self.dimensions}"
            raise RequestError(422, message, "dimensions", "too_many_dimensions")
        inputs: Any = request.input
        if isinstance(inputs, str) or (inputs and isinstance(inputs[0], int)):
            inputs = [inputs]
        if not all(inputs):
            raise RequestError(422, "input contains an empty text or list", "input", "empty_input")
        check_number(inputs, "input")
        if isinstance(inputs[0], str):
            check_unicode(inputs)
            tokens = self._tokenize(inputs, self._prefix(prompt), request)
        elif prompt is not None:
            raise RequestError(422, "a prompt is prepended to texts, not to token ids", "prompt_name")
        else:
            tokens = self._check_tokens(inputs, request)
        self._check_lengths(tokens)
        return tokens

    def tokens(self, request: TokenizeRequest) -> list[list[TokenSpan]]:
        """The tokens of each text with their positions, the response of `/tokenize`."""
        texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
        check_number(texts, "inputs")
        check_unicode(texts)
        name = self.prompt_name(EmbeddingRequest(input="-", prompt_name=request.prompt_name))
        texts = [self._prefix(name) + text for text in texts]
        backend = self.tokenizer.backend_tokenizer
        # Both are state: of the file that the tokenizer was loaded from, then of its last use.
        backend.no_truncation()
        backend.no_padding()
        found = backend.encode_batch(texts, add_special_tokens=request.add_special_tokens)
        return [spans(text, encoding) for text, encoding in zip(texts, found, strict=True)]

    def texts(self, request: DecodeRequest) -> list[str]:
        """The texts of token ids, the response of `/decode`.

        Raises:
            RequestError: if a token id is not in the vocabulary.
        """
        ids: Any = request.ids
        if ids and isinstance(ids[0], int):
            ids = [ids]
        check_number(ids, "ids")
        if not all(0 <= token < self.frame.vocabulary for one in ids for token in one):
            message = f"ids has a token id outside the model's vocabulary of {self.frame.vocabulary}"
            raise RequestError(422, message, "ids", "unknown_token")
        skip = request.skip_special_tokens
        return self.tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=skip)

    def _prefix(self, prompt: str | None) -> str:
        """The text of a prompt; that of the model's default prompt, which most models lack, for None."""
        return self.spec.default_prompt if prompt is None else self.spec.prompts.get(prompt, "")

    def _tokenize(self, texts: list[str], prefix: str, request: EmbeddingRequest) -> Tokens:
        skipped = tokenizer.skipped_tokens(self.tokenizer, self.spec, prefix, self.spec.max_length)
        whole = tokenizer.encode(self.tokenizer, list(map(prefix.__add__, texts)), None, skipped)
        return self._shorten(whole, request)

    def _check_tokens(self, token_ids: list[list[int]], request: EmbeddingRequest) -> Tokens:
        for index, ids in enumerate(token_ids):
            self.frame.check(index, ids)
        return self._shorten(Tokens.of(token_ids), request)

    def _shorten(self, tokens: Tokens, request: EmbeddingRequest) -> Tokens:
        """Ids within the maximum length, if the request wants it; a cut at the left end takes the prompt."""
        surplus = np.maximum(tokens.lengths - self.spec.max_length, 0)
        if not request.truncate or not surplus.any():
            return tokens
        start, end = len(self.frame.before), tokens.lengths - len(self.frame.after)
        if (request.truncation_direction or self.truncation_side).lower() == "right":
            return tokens.without(end - surplus, surplus)
        kept = tokens.without(np.full_like(end, start), surplus)
        return replace(kept, skipped=np.maximum(np.minimum(kept.skipped, start), kept.skipped - surplus))

    def _check_lengths(self, tokens: Tokens) -> None:
        lengths = tokens.lengths.tolist()
        if 0 in lengths:
            message = f"input {lengths.index(0)} has no token: the model's tokenizer drops all its characters"
            raise RequestError(422, message, "input", "empty_input")
        longest = max(lengths)
        if longest > self.spec.max_length:
            message = (
                f"input {lengths.index(longest)} has {longest} tokens; the model takes "
                f'{self.spec.max_length}. Shorten it, or send "truncate": true'
            )
            raise RequestError(422, message, "input", "context_length_exceeded")
        if np.any((tokens.skipped > 0) & (tokens.skipped >= tokens.lengths)):
            message = "the prompt fills the maximum length, and its tokens are not pooled: no token is left"
            raise RequestError(422, message, "prompt_name", "no_pooled_token")


def spans(text: str, encoding: "Encoding") -> list[TokenSpan]:
    """The tokens of a text; a token that the tokenizer adds is not a part of it."""
    found = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
    return [
        TokenSpan(id=id, text=token, special=True, start=None, stop=None)
        if special
        else TokenSpan(id=id, text=text[start:stop], special=False, start=start, stop=stop)
        for id, token, special, (start, stop) in found
    ]


def check_number(inputs: list[Any], key: str) -> None:
    """Refuse no inputs, and too many.

    Raises:
        RequestError: naming the key of the body.
    """
    if not inputs:
        raise RequestError(422, f"{key} is empty", key, "empty_input")
    if len(inputs) > MAX_INPUTS:
        message = f"{key} has {len(inputs)} texts; allowed: {MAX_INPUTS} in one request"
        raise RequestError(422, message, key, "too_many_inputs")


def check_unicode(texts: list[str]) -> None:
    """Refuse texts that UTF-8 cannot encode.

    Raises:
        RequestError: if a text contains half of a surrogate pair, which JSON can express.
    """
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        message = "input has half of a surrogate pair, which is not valid Unicode"
        raise RequestError(422, message, "input", "invalid_unicode") from error

"""From the inputs of a request to token ids, checked."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from boom_ray import storage
from boom_ray.model import directory, tokenizer
from boom_ray.model.spec import EncoderSpec
from boom_ray.serve.limits import MAX_INPUTS
from boom_ray.serve.schema import EmbeddingRequest, RequestError, TokenizeRequest, TokenSpan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RequestReader:
    """Turns inputs into token ids of one model. For one thread: a tokenizer keeps truncation as state.

    Attributes:
        tokenizer: Tokenizer of the model.
        spec: Maximum length and prompts of the model.
        dimensions: Length of its embeddings.
        vocabulary: Number of its token ids.
    """

    tokenizer: "PreTrainedTokenizerBase"
    spec: EncoderSpec
    dimensions: int
    vocabulary: int

    @classmethod
    def load(cls, uri: str) -> "RequestReader":
        """The reader of a model directory, without its weights."""
        local = storage.local_directory(uri)
        spec = directory.read_spec(local)
        with open(f"{local}/config.json", encoding="utf-8") as file:
            vocabulary = json.load(file)["vocab_size"]
        return cls(tokenizer.load(local, spec), spec, directory.dimension_of(local), vocabulary)

    def prompt_name(self, request: EmbeddingRequest) -> str | None:
        """The name of the prompt that a request selects.

        Raises:
            RequestError: if the model has no such prompt, or the request selects two.
        """
        name, prompts = request.prompt_name or request.input_type, self.spec.prompts
        if request.prompt_name and request.input_type not in (None, request.prompt_name):
            message = "prompt_name and input_type differ; send one of them"
            raise RequestError(422, message, "input_type", "two_prompts")
        if name is not None and name not in prompts:
            message = f"no prompt {name!r}; the model has: {', '.join(sorted(prompts)) or 'none'}"
            raise RequestError(422, message, "prompt_name", "unknown_prompt")
        return name

    def read(self, request: EmbeddingRequest) -> list[list[int]]:
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
        if not inputs or not all(inputs):
            raise RequestError(
                422, "input is empty, or contains an empty text or list", "input", "empty_input"
            )
        if len(inputs) > MAX_INPUTS:
            message = f"input has {len(inputs)} texts; allowed: {MAX_INPUTS} in one request"
            raise RequestError(422, message, "input", "too_many_inputs")
        if isinstance(inputs[0], str):
            check_unicode(inputs)
            prefix = self.spec.prompts[prompt] if prompt else ""
            return self._tokenize([prefix + text for text in inputs], request.truncate)
        if prompt is not None:
            raise RequestError(422, "a prompt is prepended to texts, not to token ids", "prompt_name")
        return self._check_tokens(inputs, request.truncate)

    def tokens(self, request: TokenizeRequest) -> list[list[TokenSpan]]:
        """The tokens of each text with their positions, the response of `/tokenize`."""
        texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
        check_unicode(texts)
        name = self.prompt_name(EmbeddingRequest(input="-", prompt_name=request.prompt_name))
        prefix = self.spec.prompts[name] if name else ""
        self.tokenizer.backend_tokenizer.no_truncation()
        found = self.tokenizer.backend_tokenizer.encode_batch(
            [prefix + text for text in texts], add_special_tokens=request.add_special_tokens
        )
        return [
            [
                TokenSpan(id=id, text=text, special=bool(special), start=start, stop=stop)
                for id, text, special, (start, stop) in zip(
                    one.ids, one.tokens, one.special_tokens_mask, one.offsets, strict=True
                )
            ]
            for one in found
        ]

    def _tokenize(self, texts: list[str], truncate: bool) -> list[list[int]]:
        options: dict[str, Any] = (
            {"truncation": True, "max_length": self.spec.max_length} if truncate else {"verbose": False}
        )
        token_ids = self.tokenizer(texts, return_attention_mask=False, **options)["input_ids"]
        self._check_lengths(token_ids)
        return token_ids

    def _check_tokens(self, token_ids: list[list[int]], truncate: bool) -> list[list[int]]:
        limit = self.spec.max_length
        if not all(0 <= token < self.vocabulary for ids in token_ids for token in ids):
            message = f"input has a token id outside the model's vocabulary of {self.vocabulary}"
            raise RequestError(422, message, "input", "unknown_token")
        if truncate:  # the last token stays: last-token pooling needs the end token
            return [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in token_ids]
        self._check_lengths(token_ids)
        return token_ids

    def _check_lengths(self, token_ids: list[list[int]]) -> None:
        longest = max(range(len(token_ids)), key=lambda index: len(token_ids[index]))
        if len(token_ids[longest]) > self.spec.max_length:
            message = (
                f"input {longest} has {len(token_ids[longest])} tokens; the model takes "
                f'{self.spec.max_length}. Shorten it, or send "truncate": true'
            )
            raise RequestError(422, message, "input", "context_length_exceeded")


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

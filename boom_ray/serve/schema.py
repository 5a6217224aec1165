"""HTTP bodies of OpenAI's embeddings API and of text-embeddings-inference.

Extensions of OpenAI's request: `prompt_name`, `input_type` and `truncate`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr


class EmbeddingRequest(BaseModel):
    """Inputs and options; an unknown key is an error.

    Attributes:
        input: One text or several; or the token ids of one or several, special tokens included.
        model: Name of a served model, `name:version`, or a version; by default the first served model.
        encoding_format: Vectors as numbers, or as base64 of little-endian float32.
        dimensions: Leading dimensions to keep, normalized again (Matryoshka); all by default.
        user: Accepted and ignored.
        prompt_name: Name of the model's prompt that is prepended to every text.
        input_type: The same for the prompts `query` and `document`.
        truncate: Truncate longer inputs at the model's maximum length instead of refusing them.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"input": ["a text", "another"], "truncate": True}]},
    )

    input: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
    model: StrictStr | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = Field(None, ge=1)
    user: StrictStr | None = None
    prompt_name: StrictStr | None = None
    input_type: Literal["query", "document"] | None = None
    truncate: StrictBool = False


class EmbeddingItem(BaseModel):
    """One vector: [d] numbers, or base64 of as many little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that were encoded, prompts and special tokens included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """The vectors, in the order of the inputs, and the name of the prompt that was prepended."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: Usage
    prompt_name: str | None = None


class ListedModel(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "boom-ray"


class ModelList(BaseModel):
    """The served models."""

    object: Literal["list"] = "list"
    data: list[ListedModel]


class EmbedRequest(BaseModel):
    """Request of text-embeddings-inference's `/embed`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"inputs": ["a text"]}]})

    inputs: StrictStr | list[StrictStr] | list[list[StrictInt]]
    truncate: StrictBool = False
    truncation_direction: Literal["Right", "right"] = "Right"
    normalize: Literal[True] = True
    prompt_name: StrictStr | None = None
    dimensions: StrictInt | None = Field(None, ge=1)

    def as_openai(self) -> EmbeddingRequest:
        """The same request in OpenAI's shape."""
        return EmbeddingRequest(
            input=self.inputs,
            truncate=self.truncate,
            prompt_name=self.prompt_name,
            dimensions=self.dimensions,
        )


class TokenizeRequest(BaseModel):
    """Request of text-embeddings-inference's `/tokenize`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"inputs": ["a text"]}]})

    inputs: StrictStr | list[StrictStr]
    add_special_tokens: StrictBool = True
    prompt_name: StrictStr | None = None


class TokenSpan(BaseModel):
    """One token; `start` and `stop` are positions in the text, in characters."""

    id: int
    text: str
    special: bool
    start: int
    stop: int


class ServerInfo(BaseModel):
    """Response of text-embeddings-inference's `/info`, about the default model."""

    model_id: str
    model_sha: str
    model_dtype: str
    model_type: dict[str, dict[str, str]]
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    max_concurrent_requests: int
    tokenization_workers: int
    version: str


class ErrorDetail(BaseModel):
    """The reason of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every response but a success."""

    error: ErrorDetail


class RequestError(Exception):
    """An error response. It is not a `BoomError`: its reader is the client, not the operator.

    Args:
        status: HTTP status, from 400.
        message: The problem and the allowed values; never the text of an input.
        param: The key of the body that is wrong.
        code: A short name for programs.
        retry_after: Seconds after which the client may retry.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.body = ErrorResponse(error=ErrorDetail(message=message, type=kind, param=param, code=code))

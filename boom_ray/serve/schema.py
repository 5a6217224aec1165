"""HTTP bodies of OpenAI's embeddings API, and of errors.

Extensions of OpenAI's request: `prompt_name`, `input_type`, `truncate`, `truncation_direction`, `normalize`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from boom_ray.serve.body import Body

TruncationDirection = Literal["Left", "left", "Right", "right"]


class EmbeddingRequest(Body):
    """Inputs and options.

    Attributes:
        input: One text or several; or the token ids of one or several, special tokens included.
        model: Name of a served model, `name:version`, or a version; by default the first served model.
        encoding_format: Vectors as numbers, or as base64 of little-endian float32.
        dimensions: Leading dimensions to keep, normalized again (Matryoshka); all by default.
        user: Accepted and ignored.
        prompt_name: Name of the model's prompt that is prepended to every text.
        input_type: The same for the prompts `query` and `document`.
        truncate: Truncate longer inputs at the model's maximum length instead of refusing them.
        truncation_direction: The end that is cut; by default that of the model's tokenizer.
        normalize: Scale vectors to norm 1.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"input": ["a text", "another"], "truncate": True}]}
    )

    input: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
    model: StrictStr | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = Field(None, ge=1)
    user: StrictStr | None = None
    prompt_name: StrictStr | None = None
    input_type: Literal["query", "document"] | None = None
    truncate: StrictBool = False
    truncation_direction: TruncationDirection | None = None
    normalize: StrictBool = True


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

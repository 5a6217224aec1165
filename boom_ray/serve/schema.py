"""The HTTP bodies of OpenAI's embeddings API, with two extensions: `prompt_name` and `truncate`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr


class EmbeddingRequest(BaseModel):
    """What to embed, and how; an unknown key is an error.

    Attributes:
        input: One text or several; or the token ids of one or of several, special tokens included.
        model: Name of the served model, which is the default.
        encoding_format: Vectors as numbers, or as base64 of little-endian float32.
        dimensions: Leading dimensions to keep, normalized again (Matryoshka); all by default.
        user: Accepted and not used.
        prompt_name: The model's prompt that goes before every text.
        truncate: Cut longer inputs at the model's maximum length instead of refusing them.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"input": ["a text", "another"], "dimensions": 256}]},
    )

    input: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
    model: StrictStr | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = Field(None, ge=1)
    user: StrictStr | None = None
    prompt_name: StrictStr | None = None
    truncate: StrictBool = False


class Embedding(BaseModel):
    """One vector: [d] numbers, or base64 of as many little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that went through the model, prompts and special tokens included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """The vectors, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "boom-ray"


class ModelList(BaseModel):
    """The served models."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(BaseModel):
    """Why a request was refused."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorDetail


class RequestError(Exception):
    """A request that cannot be answered, as its client is told.

    Args:
        status: HTTP status, from 400.
        message: What is wrong, what is allowed; never the text of the input.
        param: The key of the body that is at fault.
        code: A short name for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.body = ErrorResponse(error=ErrorDetail(message=message, type=kind, param=param, code=code))

"""HTTP bodies of text-embeddings-inference (TEI), for a server of dense embeddings.

Source: `router/src/http/types.rs` in https://github.com/huggingface/text-embeddings-inference.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from boom_ray.serve.body import Body
from boom_ray.serve.schema import EmbeddingRequest, TruncationDirection


class EmbedRequest(Body):
    """Request of `POST /embed` and `POST /`.

    Attributes:
        inputs: As `input` of `EmbeddingRequest`.
        encoding_format: Vectors as numbers; the only form that TEI has here.
        options: Accepted and ignored: how the hosted inference API queues and caches.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": ["a text"]}]})

    inputs: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
    truncate: StrictBool = False
    truncation_direction: TruncationDirection | None = None
    normalize: StrictBool = True
    prompt_name: StrictStr | None = None
    dimensions: StrictInt | None = Field(None, ge=1)
    encoding_format: Literal["float"] = "float"
    options: dict[str, Any] | None = None

    def as_openai(self) -> EmbeddingRequest:
        """The same request in OpenAI's shape."""
        values = self.model_dump(exclude={"inputs", "options"})
        return EmbeddingRequest(input=self.inputs, **values)


class SimilarityInputs(Body):
    """A text, and those that it is compared with."""

    source_sentence: StrictStr
    sentences: list[StrictStr] = Field(min_length=1)


class SimilarityParameters(Body):
    """Options of `POST /similarity`, for all of its texts."""

    truncate: StrictBool = False
    truncation_direction: TruncationDirection | None = None
    prompt_name: StrictStr | None = None


class SimilarityRequest(Body):
    """Request of `POST /similarity`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inputs": {"source_sentence": "a text", "sentences": ["another"]}}]}
    )

    inputs: SimilarityInputs
    parameters: SimilarityParameters = SimilarityParameters()

    def as_openai(self) -> EmbeddingRequest:
        """The request for the vectors of all texts, the source first."""
        texts = [self.inputs.source_sentence, *self.inputs.sentences]
        return EmbeddingRequest(input=texts, **self.parameters.model_dump())


class TokenizeRequest(Body):
    """Request of `POST /tokenize`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": ["a text"]}]})

    inputs: StrictStr | list[StrictStr]
    add_special_tokens: StrictBool = True
    prompt_name: StrictStr | None = None


class TokenSpan(BaseModel):
    """One token; `start` and `stop` are positions in the text, in characters, without special tokens."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class DecodeRequest(Body):
    """Request of `POST /decode`: the token ids of one text or of several."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [[1, 2, 3]]}]})

    ids: list[StrictInt] | list[list[StrictInt]]
    skip_special_tokens: StrictBool = True


class ServerInfo(BaseModel):
    """Response of `GET /info`, about the default model."""

    model_id: str
    model_sha: str
    model_dtype: str
    served_model_name: str
    model_type: dict[str, dict[str, str]]
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None = None
    max_client_batch_size: int
    max_concurrent_requests: int
    auto_truncate: bool = False
    tokenization_workers: int
    version: str
    sha: str | None = None
    docker_label: str | None = None

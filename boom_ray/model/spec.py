"""The settings of a model directory that define an embedding, apart from the weights."""

from dataclasses import dataclass, field

from boom_ray.recipe import Pooling


@dataclass(frozen=True)
class EncoderSpec:
    """Pooling, maximum length and prompts of an encoder.

    Attributes:
        pooling: Reduction of token states to one vector.
        max_length: Maximum input length in tokens, including special tokens.
        prompts: Prefixes of inputs, by name.
    """

    pooling: Pooling
    max_length: int
    prompts: dict[str, str] = field(default_factory=dict)

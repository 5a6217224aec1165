"""What a model directory says beside the weights."""

from dataclasses import dataclass, field

from boom_ray.recipe import Pooling


@dataclass(frozen=True)
class EncoderSpec:
    """How an encoder turns texts into vectors.

    Attributes:
        pooling: How token states become one vector.
        max_length: Longest input in tokens, special tokens included.
        prompts: Text that goes before an input, by name.
    """

    pooling: Pooling
    max_length: int
    prompts: dict[str, str] = field(default_factory=dict)

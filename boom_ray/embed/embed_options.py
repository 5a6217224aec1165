"""The options of an embedding run."""

from dataclasses import dataclass
from typing import Literal

from boom_ray.errors import InputError
from boom_ray.runtime.demand import TIMEOUT_S
from boom_ray.runtime.devices import Device

Precision = Literal["float32", "bfloat16"]
VectorType = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]


@dataclass(frozen=True)
class EmbedOptions:
    """Options of an embedding run.

    Attributes:
        text_column: Column of texts (strings). Longer texts are truncated at the model's maximum length.
        id_column: Column of ids (integers or strings); by default `id`, and where there is none, ids are
            `file:row`.
        prompt_name: Name of the model's prompt that is prepended to every text; by default its prompt of
            documents, or the prompt that its files name for all texts.
        prompt: Text of a prompt, instead of a name; empty for none.
        columns: Input columns to copy to the output.
        filter: Condition that rows must satisfy, such as `lang == 'en' and stars > 3`.
        limit: Maximum number of rows to embed.
        empty_text: Whether an empty text is an error or is embedded.
        no_tokens: Whether a text of which the tokenizer makes no tokens is an error, or its vector is zero.
        dimensions: Keep this many leading dimensions and normalize again (Matryoshka); all by default.
        dtype: Type of the stored vectors, in the words of sentence-transformers.
        chunk: Split texts into chunks of at most this many tokens; by default they are truncated.
        overlap: Tokens that consecutive chunks share.
        chunk_output: `mean`: one vector per text. `each`: one vector per chunk.
        since: Earlier outputs of the same model; rows that one of them contains are skipped.
        num_workers: Maximum number of encoders; by default one per GPU, or the number that a short
            measurement of the CPUs finds fastest.
        precision: Precision of weights and activations; by default bfloat16 on GPUs, and on CPUs bfloat16
            only if it is faster and the vectors agree with float32.
        chunk_tokens: Tokens in one forward pass, padding included; by default as suits the device. Vectors
            depend on it by rounding only.
        device: Device of the encoders; `auto`: GPUs if the cluster has any, or its autoscaler may start some.
        start_timeout_s: Seconds to wait until the cluster has capacity for one encoder.

    Raises:
        InputError: if options contradict each other.
    """

    text_column: str = "text"
    id_column: str | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    columns: tuple[str, ...] = ()
    filter: str | None = None
    limit: int | None = None
    empty_text: Literal["refuse", "embed"] = "refuse"
    no_tokens: Literal["refuse", "zeros"] = "refuse"
    dimensions: int | None = None
    dtype: VectorType = "float32"
    chunk: int | None = None
    overlap: int = 0
    chunk_output: Literal["mean", "each"] = "mean"
    since: tuple[str, ...] = ()
    num_workers: int | None = None
    precision: Precision | None = None
    chunk_tokens: int | None = None
    device: Device = "auto"
    start_timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        if self.prompt_name is not None and self.prompt is not None:
            raise InputError("prompt_name and prompt exclude each other. Set one of them")
        if self.overlap and not self.chunk:
            raise InputError(f"overlap {self.overlap}: needs chunk, the number of tokens in a chunk")
        if self.chunk and self.overlap >= self.chunk // 2:
            raise InputError(f"overlap {self.overlap}: allowed below half of chunk {self.chunk}")
        made = {"id", "embedding", "text_xxh3", *(["chunk"] if self.has_chunk_rows else [])}
        reserved = sorted(made & set(self.columns))
        if reserved:
            raise InputError(f"columns: {', '.join(reserved)} is a column of the output. Omit it")
        repeated = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if repeated:
            raise InputError(f"columns: {', '.join(repeated)} is named twice. Name it once")

    @property
    def has_chunk_rows(self) -> bool:
        """Whether the output has one row per chunk of a text."""
        return self.chunk is not None and self.chunk_output == "each"

"""What a user can ask of an embedding run beside model, source and target."""

from dataclasses import dataclass
from typing import Literal

from boom_ray.errors import BoomError

Precision = Literal["float32", "bfloat16"]
VectorType = Literal["float32", "float16", "int8", "binary"]


@dataclass(frozen=True)
class Options:
    """How texts become vectors.

    Attributes:
        text_column: The column of texts, strings; longer ones are cut at the model's maximum length.
        id_column: The column of ids, integers or strings.
        prompt_name: The model's prompt that goes before every text; none by default.
        prompt: That prompt itself, in place of a name.
        columns: Columns that are carried along.
        filter: What rows must satisfy, such as `lang == 'en' and stars > 3`.
        limit: Rows after which reading ends.
        empty_text: Whether an empty text is an error or is embedded.
        dimensions: First numbers of each embedding that are kept, and normalized again.
        dtype: Of the numbers that are written.
        chunk: Tokens after which a text is cut into pieces; by default its end is cut off.
        overlap: Tokens two pieces share.
        chunk_output: One mean vector per text, or one vector per piece.
        since: Earlier outputs of the same model; only rows that none of them has are embedded.
        num_workers: Encoders side by side at most; by default one per GPU, or as many as a short probe of the
            CPUs finds best.
        precision: Of weights and activations; by default bfloat16 on GPUs, and on CPUs the faster of those
            that give the same vectors.
        chunk_tokens: Padded tokens in one forward pass.
    """

    text_column: str = "text"
    id_column: str = "id"
    prompt_name: str | None = None
    prompt: str | None = None
    columns: tuple[str, ...] = ()
    filter: str | None = None
    limit: int | None = None
    empty_text: Literal["refuse", "embed"] = "refuse"
    dimensions: int | None = None
    dtype: VectorType = "float32"
    chunk: int | None = None
    overlap: int = 0
    chunk_output: Literal["mean", "each"] = "mean"
    since: tuple[str, ...] = ()
    num_workers: int | None = None
    precision: Precision | None = None
    chunk_tokens: int = 8192

    def __post_init__(self) -> None:
        if self.prompt_name is not None and self.prompt is not None:
            raise BoomError("give a prompt by name or by text, not both")
        if self.overlap and not self.chunk:
            raise BoomError(f"--overlap {self.overlap} goes with --chunk TOKENS")
        if self.chunk and self.overlap >= self.chunk // 2:
            raise BoomError(f"--overlap {self.overlap}: allowed below half of --chunk {self.chunk}")
        taken = {"id", "chunk", "embedding", "text_xxh3"} & set(self.columns)
        if taken:
            raise BoomError(f"--columns: {', '.join(sorted(taken))} is a column of the output. Leave it out")

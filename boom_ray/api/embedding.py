"""Embed texts: many with a cluster, or a few in this process; compare the vectors of two models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from boom_ray import storage
from boom_ray.api import arguments
from boom_ray.api.arguments import ModelLike, PathLike
from boom_ray.api.results import EmbedResult
from boom_ray.errors import InputError
from boom_ray.recipe import BaseModelSource, Pooling
from boom_ray.runtime.demand import TIMEOUT_S
from boom_ray.runtime.devices import Device
from boom_ray.runtime.progress import ProgressCallback, reported_to

if TYPE_CHECKING:
    from boom_ray.embed.drift import Drift
    from boom_ray.model.encoder import Encoder


def embed(
    model: ModelLike,
    source: PathLike,
    out: PathLike,
    *,
    text_column: str = "text",
    id_column: str | None = None,
    columns: Sequence[str] = (),
    filter: str | None = None,
    limit: int | None = None,
    empty_text: Literal["refuse", "embed"] = "refuse",
    no_tokens: Literal["refuse", "zeros"] = "refuse",
    prompt_name: str | None = None,
    prompt: str | None = None,
    dimensions: int | None = None,
    dtype: Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"] = "float32",
    chunk: int | None = None,
    overlap: int = 0,
    chunk_output: Literal["mean", "each"] = "mean",
    since: Sequence[PathLike] = (),
    precision: Literal["float32", "bfloat16"] | None = None,
    chunk_tokens: int | None = None,
    num_workers: int | None = None,
    device: Device = "auto",
    start_timeout_s: float = TIMEOUT_S,
    progress: ProgressCallback | None = None,
) -> EmbedResult:
    """Embed the texts of parquet, jsonl, csv or text files into parquet, on the cluster.

    An interrupted run continues when it is called again with the same arguments.

    Args:
        source: A file, or a directory of files of one format.
        out: Directory of the vectors: parquet with `id`, `text_xxh3`, `embedding`, and `columns`.
        text_column: Column of texts; longer texts are cut at the model's maximum length.
        id_column: Column of ids, integers or strings; by default `id`, and where there is none, ids are
            `file:row`.
        columns: Columns of the source to copy.
        filter: Embed only rows that satisfy a condition, such as `lang == 'en' and stars > 3`.
        limit: Number of rows after which reading ends.
        empty_text: Whether an empty text is an error or is embedded.
        no_tokens: Whether a text of which the tokenizer makes no tokens is an error, or its vector is zero.
        prompt_name: Name of the model's prompt that precedes every text, such as `query`; by default its
            prompt of documents, or the prompt that its files name for all texts.
        prompt: Text of a prompt, instead of its name; empty for none.
        dimensions: Number of leading dimensions to keep; they are normalized again.
        dtype: Type of the numbers that are stored, in the words of sentence-transformers.
        chunk: Cut texts into pieces of this many tokens instead of cutting off their end.
        overlap: Tokens that two pieces share.
        chunk_output: One mean vector per text, or one vector per piece.
        since: Earlier outputs of the same model; rows that are in one of them are left out.
        precision: Of the computation; by default bfloat16 on GPUs, and on CPUs the faster of those that give
            the same vectors.
        chunk_tokens: Tokens in one forward pass, padding included; by default 8192 on CPUs, 65536 on GPUs.
        num_workers: Maximum number of encoders; by default one per GPU, or as measured on CPUs.
        device: Device of the encoders; `auto`: GPUs if the cluster has any, or its autoscaler may start some.
        start_timeout_s: Seconds to wait until the cluster has capacity for one encoder.
        progress: Receives every `ProgressEvent`; by default progress is printed.

    Raises:
        InputError: if an argument, a column or a text is not valid, before a model is loaded.
        NotFoundError: if the model, the source or a column does not exist.
        ConflictError: if `out` exists, or `since` was made by another model.
        StorageError: if reading or writing fails.
        ClusterError: if the cluster has no capacity for an encoder, or its nodes lack the device.

    Example:
        >>> boom.embed("runs/quickstart", "texts.parquet", "vectors", prompt_name="query").to_frame()
    """
    from boom_ray.embed.embed_options import EmbedOptions
    from boom_ray.embed.embedding_run import embed as embed_source
    from boom_ray.runtime import cluster

    arguments.at_least(
        1, limit=limit, dimensions=dimensions, chunk_tokens=chunk_tokens, num_workers=num_workers
    )
    arguments.at_least(8, chunk=chunk)
    arguments.at_least(0, overlap=overlap)
    options = arguments.settings(
        EmbedOptions,
        text_column=text_column,
        id_column=id_column,
        columns=tuple(columns),
        filter=filter,
        limit=limit,
        empty_text=empty_text,
        no_tokens=no_tokens,
        prompt_name=prompt_name,
        prompt=prompt,
        dimensions=dimensions,
        dtype=dtype,
        chunk=chunk,
        overlap=overlap,
        chunk_output=chunk_output,
        since=tuple(map(arguments.path, since)),
        precision=precision,
        chunk_tokens=chunk_tokens,
        num_workers=num_workers,
        device=device,
        start_timeout_s=start_timeout_s,
    )
    uri, target = arguments.model_uri(model), arguments.path(out)
    cluster.connect()
    with reported_to(progress):
        return EmbedResult(target, embed_source(uri, arguments.path(source), target, options))


def drift(
    model_a: ModelLike,
    model_b: ModelLike,
    data: PathLike,
    *,
    text_column: str = "text",
    id_column: str | None = None,
    rows: int = 1000,
) -> "Drift":
    """Compare the vectors of two models on a sample of texts: must an index be built again?

    Args:
        data: Texts: parquet, jsonl, csv or text.
        rows: Size of the sample, at least 20.

    Raises:
        InputError: if there are too few texts.
        NotFoundError: if a model or the data does not exist.

    Example:
        >>> boom.drift("runs/quickstart/models/v0001", "runs/quickstart/models/v0002", "texts.parquet").cosine
    """
    from boom_ray.embed.drift import drift as measure
    from boom_ray.runtime import cluster

    arguments.at_least(20, rows=rows)
    uris = arguments.model_uri(model_a), arguments.model_uri(model_b)
    cluster.connect()
    return measure(*uris, arguments.path(data), text_column, id_column, rows)


@dataclass(frozen=True)
class LoadedModel:
    """A model in the memory of this process.

    Attributes:
        model: URI of the model.
        encoder: The transformer with its tokenizer, pooling and normalization.
    """

    model: str
    encoder: "Encoder"

    @property
    def prompts(self) -> dict[str, str]:
        """The model's prompts by name."""
        return self.encoder.spec.prompts

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self.encoder.dimension

    def encode(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        *,
        prompt: str | None = None,
        dimensions: int | None = None,
    ) -> NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: One text or n texts; longer ones are cut at the model's maximum length.
            prompt_name: Name of the model's prompt that precedes every text, such as `query`; by default the
                prompt that its files name for all texts, which most models lack.
            prompt: Text of a prompt, instead of its name; empty for none.
            dimensions: Number of leading dimensions to keep; they are normalized again.

        Returns:
            [n, d] float32, each row of norm 1; [d] for one text.

        Raises:
            InputError: if the model has no such prompt, or not so many dimensions.

        Example:
            >>> model = boom.load("runs/quickstart")
            >>> model.encode(["how do I sort a list?"], "query").shape
            (1, 384)
        """
        if prompt_name is None and prompt is None:
            prompt = self.encoder.spec.default_prompt
        if prompt_name is not None:
            if prompt_name not in self.prompts:
                names = ", ".join(sorted(self.prompts)) or "none"
                raise InputError(f"{self.model}: no prompt {prompt_name!r}; the model has: {names}")
            if prompt is not None:
                raise InputError("give a prompt by prompt_name or by its text, not both")
            prompt = self.prompts[prompt_name]
        size = self.dimensions if dimensions is None else dimensions
        if not 1 <= size <= self.dimensions:
            raise InputError(f"dimensions: got {dimensions}; allowed: 1 to {self.dimensions}")
        vectors = self.encoder.encode([texts] if isinstance(texts, str) else list(texts), prompt or "")
        if size < self.dimensions:
            vectors = vectors[:, :size] / np.linalg.norm(vectors[:, :size], axis=1, keepdims=True)
        return vectors[0] if isinstance(texts, str) else vectors


def load(
    model: ModelLike,
    *,
    device: str | None = None,
    pooling: Pooling | None = None,
    max_length: int | None = None,
) -> LoadedModel:
    """Load a model into this process, without Ray.

    Args:
        device: A device of torch; by default `cuda` if available, else `cpu`.
        pooling: Pooling of a base model whose files do not state it.
        max_length: Tokens after which texts are cut; by default the model's own limit.

    Raises:
        NotFoundError: if there is no such model.
        InputError: if it cannot be loaded.

    Example:
        >>> boom.load(run.model).encode(["how do I sort a list?"])
    """
    import torch

    from boom_ray.model import directory

    uri = arguments.model_uri(model)
    values = {"path": uri, "pooling": pooling, "max_length": max_length}
    source = arguments.section(BaseModelSource, values, "not valid arguments:")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    encoder = directory.load_encoder(storage.local_directory(uri), source, device=device)
    return LoadedModel(uri, encoder.for_inference())

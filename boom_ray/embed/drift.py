"""Drift of the vector space between two models: must an index be built again?"""

from dataclasses import dataclass

import numpy as np
import ray

from boom_ray import storage
from boom_ray.embed.embed_options import EmbedOptions
from boom_ray.embed.text_source import open_source
from boom_ray.errors import InputError
from boom_ray.model import directory
from boom_ray.runtime import demand
from boom_ray.runtime.cluster import result_of

NEIGHBOURS = 10
SAME_COSINE = 0.999  # above it, neighbours change no more than by the rounding of an approximate index


@dataclass(frozen=True)
class Drift:
    """Differences between the vectors of two models on a sample.

    Attributes:
        rows: Texts compared.
        cosine: Mean cosine of a text's two vectors; None if their lengths differ.
        overlap: Mean fraction of a text's ten nearest neighbours that both models agree on.
        crossed: The same for queries of the second model on an index of the first; None like `cosine`.
    """

    rows: int
    cosine: float | None
    overlap: float
    crossed: float | None

    @property
    def index_can_stay(self) -> bool:
        """Whether the second model can query an index of the first."""
        return self.cosine is not None and self.cosine > SAME_COSINE

    def lines(self) -> list[str]:
        """A summary, one finding a line."""
        found = [f"compared: {self.rows} texts"]
        if self.cosine is not None:
            found.append(f"mean cosine of a text's two vectors: {self.cosine:.4f}")
            found.append(
                f"neighbours@{NEIGHBOURS}, new queries on the old index: {self.crossed:.3f} of the old ones"
            )
        found.append(f"neighbours@{NEIGHBOURS}, each model on its own index: {self.overlap:.3f} agree")
        verdict = "can stay" if self.index_can_stay else "must be built again before the new model queries it"
        return [*found, f"the index {verdict}"]


def drift(model_a: str, model_b: str, data: str, text_column: str, id_column: str | None, rows: int) -> Drift:
    """Embed a sample with both models and compare the vectors.

    Args:
        model_a: URI of the model whose vectors are in the index.
        model_b: URI of the model that is to query it.
        data: URI of texts: a file, or a directory of files of one format.
        rows: Size of the sample, which is spread evenly over the source.

    Raises:
        InputError: if there are too few texts, or a model cannot be loaded.
    """
    texts = _sample(data, EmbedOptions(text_column=text_column, id_column=id_column), rows)
    if len(texts) <= NEIGHBOURS:
        raise InputError(
            f"{data}: contains {len(texts)} distinct texts; a comparison needs more than {NEIGHBOURS}"
        )
    demand.await_capacity({"CPU": 1.0}, remedy="Add nodes with CPUs")
    # Both tasks are submitted before the first result is awaited, so that the models run in parallel.
    references = [_vectors.remote(uri, texts) for uri in (model_a, model_b)]
    old, new = (result_of(reference) for reference in references)
    near_old, near_new = nearest(old, old), nearest(new, new)
    if old.shape != new.shape:
        return Drift(len(texts), None, shared(near_old, near_new), None)
    cosine = float((old * new).sum(1).mean())
    return Drift(len(texts), cosine, shared(near_old, near_new), shared(near_old, nearest(new, old)))


def _sample(data: str, options: EmbedOptions, rows: int) -> list[str]:
    """Distinct texts, spread evenly over the source."""
    source = open_source(data, options)
    found: dict[str, None] = {}
    for unit in source.find_units():
        for table in source.read(unit):
            found.update(dict.fromkeys(text for text in table["text"].to_pylist() if text))
    texts = list(found)
    return [texts[index] for index in np.linspace(0, len(texts) - 1, min(rows, len(texts))).astype(int)]


@ray.remote(num_cpus=1)
def _vectors(model: str, texts: list[str]) -> np.ndarray:
    return directory.load_encoder(storage.local_directory(model)).for_inference().encode(texts)


def nearest(queries: np.ndarray, index: np.ndarray) -> np.ndarray:
    """[n, 10] int64: for each row of [n, d] `queries`, the nearest rows of [n, d] `index` but its own."""
    scores = queries @ index.T
    np.fill_diagonal(scores, -np.inf)
    return np.argpartition(-scores, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]


def shared(one: np.ndarray, other: np.ndarray) -> float:
    """Mean fraction of neighbours that two [n, 10] lists have in common."""
    return float(
        np.mean(
            [len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(one.tolist(), other.tolist(), strict=True)]
        )
    )

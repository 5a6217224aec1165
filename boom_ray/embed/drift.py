"""How far the vector space moved between two models: must what was embedded with one be embedded again?"""

from dataclasses import dataclass

import numpy as np
import ray

from boom_ray import storage
from boom_ray.embed.options import Options
from boom_ray.embed.source import open_source
from boom_ray.errors import BoomError
from boom_ray.model import directory
from boom_ray.runtime.cluster import result_of

NEIGHBOURS = 10
SAME_COSINE = 0.999  # above it the rounding of an index moves neighbours as much


@dataclass(frozen=True)
class Drift:
    """What a sample says.

    Attributes:
        rows: Texts compared.
        cosine: Mean cosine of the two vectors of a text; None if they differ in length.
        overlap: Mean share of a text's ten nearest that both models agree on.
        crossed: The same for queries of the second model on an index of the first; None like `cosine`.
    """

    rows: int
    cosine: float | None
    overlap: float
    crossed: float | None

    def lines(self) -> list[str]:
        """What a person is told."""
        told = [f"compared: {self.rows} texts"]
        if self.cosine is not None:
            told.append(f"mean cosine of a text's two vectors: {self.cosine:.4f}")
            told.append(
                f"neighbours@{NEIGHBOURS}, new queries on the old index: {self.crossed:.3f} of the old ones"
            )
        told.append(f"neighbours@{NEIGHBOURS}, each model on its own index: {self.overlap:.3f} agree")
        same = self.cosine is not None and self.cosine > SAME_COSINE
        return [
            *told,
            f"the index {'can stay' if same else 'must be built again before the new model queries it'}",
        ]


def drift(model_a: str, model_b: str, data: str, text_column: str, id_column: str, rows: int) -> Drift:
    """Embed a sample with both models and compare.

    Args:
        rows: Texts in the sample, taken evenly from the source.

    Raises:
        BoomError: if there are too few texts, or a model cannot be loaded.
    """
    texts = _sample(data, Options(text_column=text_column, id_column=id_column), rows)
    if len(texts) <= NEIGHBOURS:
        raise BoomError(
            f"{data}: holds {len(texts)} different texts; a comparison takes more than {NEIGHBOURS}"
        )
    old, new = (
        result_of(reference) for reference in [_vectors.remote(uri, texts) for uri in (model_a, model_b)]
    )
    near_old, near_new = nearest(old, old), nearest(new, new)
    if old.shape != new.shape:
        return Drift(len(texts), None, shared(near_old, near_new), None)
    cosine = float((old * new).sum(1).mean())
    return Drift(len(texts), cosine, shared(near_old, near_new), shared(near_old, nearest(new, old)))


def _sample(data: str, options: Options, rows: int) -> list[str]:
    """Different texts, spread evenly over the source."""
    source = open_source(data, options)
    found: dict[str, None] = {}
    for unit in source.units:
        for table in source.read(unit):
            found.update(dict.fromkeys(text for text in table["text"].to_pylist() if text))
    texts = list(found)
    return [texts[index] for index in np.linspace(0, len(texts) - 1, min(rows, len(texts))).astype(int)]


@ray.remote(num_cpus=1)
def _vectors(model: str, texts: list[str]) -> np.ndarray:
    return directory.load_encoder(storage.local_directory(model)).for_inference().encode(texts)


def nearest(queries: np.ndarray, index: np.ndarray) -> np.ndarray:
    """[n, 10] int64: the nearest rows of `index` to each row of `queries` that are not the same text."""
    scores = queries @ index.T
    np.fill_diagonal(scores, -np.inf)
    return np.argpartition(-scores, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]


def shared(one: np.ndarray, other: np.ndarray) -> float:
    """Mean share of neighbours that two lists have in common."""
    return float(
        np.mean(
            [len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(one.tolist(), other.tolist(), strict=True)]
        )
    )

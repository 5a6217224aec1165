"""The self-test of a published model: the record stores the embedding of one fixed sentence.

Hashes prove that the files are unchanged. The self-test proves that they still produce the same embeddings
with the current libraries and hardware.
"""

from typing import TYPE_CHECKING

import numpy as np

from boom_ray import storage
from boom_ray.errors import InputError
from boom_ray.model import directory

if TYPE_CHECKING:
    from boom_ray.model.encoder import Encoder

SENTENCE = "A sentence that every version of a model must be able to embed."
NUM_STORED = 64  # leading dimensions of the embedding
MIN_COSINE = {"float32": 0.999, "bfloat16": 0.99}


def compute(uri: str) -> list[float]:
    """The first `NUM_STORED` dimensions of the sentence's embedding by the model at `uri`.

    Raises:
        InputError: if the model cannot be loaded, or its embedding is not a unit vector.
    """
    vector = _embed(directory.load_encoder(storage.local_directory(uri)), uri)
    return [round(float(value), 6) for value in vector[:NUM_STORED]]


def check(encoder: "Encoder", recorded: list[float], uri: str) -> None:
    """Compare the sentence's embedding with the recorded one.

    Args:
        recorded: Result of `compute` when the model was published; if empty, only the norm is checked.

    Raises:
        InputError: if the embedding is not a unit vector, or differs from the recorded one.
    """
    vector = _embed(encoder, uri)
    if not recorded:
        return
    expected, actual = np.array(recorded), vector[: len(recorded)]
    cosine = expected @ actual / np.linalg.norm(expected) / np.linalg.norm(actual)
    min_cosine = MIN_COSINE[str(encoder.transformer.dtype).removeprefix("torch.")]
    if cosine < min_cosine:
        raise InputError(
            f"{uri}: the embedding of the self-test sentence has cosine {cosine:.4f} to the recorded one; "
            f"allowed: {min_cosine} or more. Use the library versions of the record, or publish it again"
        )


def _embed(encoder: "Encoder", uri: str) -> np.ndarray:
    vector = encoder.encode([SENTENCE])[0]
    norm = float(np.linalg.norm(vector))
    if not abs(norm - 1) < 0.01:  # also true for NaN
        raise InputError(
            f"{uri}: the embedding of the self-test sentence has norm {norm:.3g} instead of 1. "
            "The weights are damaged; train or merge the model again"
        )
    return vector

"""A sentence whose vector the record of a version keeps.

Hashes prove that files are the same; this proves that they still make the same model, whatever libraries and
hardware it is served with.
"""

from typing import TYPE_CHECKING

import numpy as np

from boom_ray import storage
from boom_ray.errors import BoomError
from boom_ray.model import directory

if TYPE_CHECKING:
    from boom_ray.model.encoder import Encoder

SENTENCE = "A sentence that every version of a model must be able to embed."
NUM_KEPT = 64
LEAST_COSINE = {"float32": 0.999, "bfloat16": 0.99}


def of(uri: str) -> list[float]:
    """The leading numbers of the sentence's vector, by the model in a directory.

    Raises:
        BoomError: if it cannot be loaded, or embeds nothing.
    """
    vector = _embed(directory.load_encoder(storage.local_directory(uri)), uri)
    return [round(float(value), 6) for value in vector[:NUM_KEPT]]


def check(encoder: "Encoder", recorded: list[float], uri: str) -> None:
    """Embed the sentence again.

    Args:
        recorded: What `of` returned when the model was published; nothing to compare with if empty.

    Raises:
        BoomError: if it embeds nothing, or something else than was recorded.
    """
    vector = _embed(encoder, uri)
    if not recorded:
        return
    known, found = np.array(recorded), vector[: len(recorded)]
    cosine = known @ found / np.linalg.norm(known) / np.linalg.norm(found)
    least = LEAST_COSINE[str(encoder.transformer.dtype).removeprefix("torch.")]
    if cosine < least:
        raise BoomError(
            f"{uri}: embeds its self-test sentence at cosine {cosine:.4f} to what its record says; allowed: "
            f"{least}. Serve it with the versions of libraries it was made with, or publish it again"
        )


def _embed(encoder: "Encoder", uri: str) -> np.ndarray:
    vector = encoder.encode([SENTENCE])[0]
    norm = float(np.linalg.norm(vector))
    if not abs(norm - 1) < 0.01:  # so is NaN refused
        raise BoomError(f"{uri}: embeds a plain sentence as a vector of norm {norm:.3g}, not 1")
    return vector

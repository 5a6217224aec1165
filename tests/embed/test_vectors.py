"""Reduction of vectors, compared with its definition."""

import json

import numpy as np
import pytest
from sentence_transformers.quantization import quantize_embeddings

from boom_ray.embed.vectors import Reduction, Scales, restore
from boom_ray.errors import InputError


@pytest.fixture
def vectors() -> np.ndarray:
    """[100, 16] float32 of norm 1."""
    drawn = np.random.default_rng(0).standard_normal((100, 16)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def stored(reduction: Reduction, vectors: np.ndarray) -> np.ndarray:
    return np.stack(reduction(vectors).to_numpy(zero_copy_only=False))


def test_leading_dimensions_are_normalized_again(vectors):
    expected = vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True)
    assert np.allclose(stored(Reduction.of(16, 8, "float32"), vectors), expected, atol=1e-6)
    assert np.array_equal(stored(Reduction.of(16, None, "float32"), vectors), vectors)


def test_int8_is_exact_to_half_a_step_of_the_range(vectors):
    scales = Reduction.of(16, None, "int8").fit(vectors)
    numbers = stored(Reduction(16, "int8", scales), vectors)
    assert (numbers.min(0) == -128).all() and (numbers.max(0) == 127).all()
    restored = restore(numbers, scales.low, scales.high)
    assert (np.abs(restored - vectors) <= (scales.high - scales.low) / 255 * 0.501).all()


@pytest.mark.parametrize("dtype", ["binary", "ubinary", "int8", "uint8"])
def test_types_mean_what_they_mean_in_sentence_transformers(vectors, dtype):
    scales = Reduction.of(16, None, "int8").fit(vectors)
    made = Reduction(16, dtype, scales)(vectors)
    ours = np.stack(made.to_numpy(zero_copy_only=False))
    theirs = quantize_embeddings(vectors, dtype, ranges=np.stack([scales.low, scales.high]))
    assert made.type == Reduction.of(16, None, dtype).arrow_type and ours.dtype == theirs.dtype
    difference = ours.astype(int) - theirs
    allowed = {0, 1} if dtype in ("int8", "uint8") else {0}  # to the nearest step; theirs is truncated
    assert set(difference.ravel().tolist()) <= allowed and ours.shape == theirs.shape


def test_uint8_is_exact_to_half_a_step_of_the_range(vectors):
    scales = Reduction.of(16, None, "uint8").fit(vectors)
    numbers = stored(Reduction(16, "uint8", scales), vectors)
    restored = restore(numbers, scales.low, scales.high)
    assert (np.abs(restored - vectors) <= (scales.high - scales.low) / 255 * 0.501).all()


def test_scales_are_the_same_after_json(vectors):
    scales = Reduction.of(16, None, "int8").fit(vectors)
    read = Scales.from_lists(**json.loads(json.dumps(scales.to_lists())))
    assert np.array_equal(read.low, scales.low) and np.array_equal(read.high, scales.high)


@pytest.mark.parametrize(("dimensions", "dtype", "words"), [
    (32, "float32", "32.*1 to 16"), (-1, "float32", "-1.*1 to 16"), (12, "binary", "12.*multiples of 8"),
])  # fmt: skip
def test_unavailable_dimensions_are_refused(dimensions, dtype, words):
    with pytest.raises(InputError, match=words):
        Reduction.of(16, dimensions, dtype)

"""Reduction of vectors, compared with its definition."""

import json

import numpy as np
import pytest

from boom_ray.embed.vectors import Reduction, Scales, restore
from boom_ray.errors import InputError


@pytest.fixture
def vectors() -> np.ndarray:
    """[100, 16] float32 of norm 1."""
    drawn = np.random.default_rng(0).standard_normal((100, 16)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def stored(reduction: Reduction, vectors: np.ndarray) -> np.ndarray:
    return np.array(reduction(vectors).to_pylist())


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


def test_binary_keeps_signs(vectors):
    bits = np.unpackbits(stored(Reduction.of(16, None, "binary"), vectors).astype(np.uint8), axis=1)
    assert np.array_equal(bits.astype(bool), vectors > 0)


def test_scales_are_the_same_after_json(vectors):
    scales = Reduction.of(16, None, "int8").fit(vectors)
    read = Scales.from_json(scales.to_json())
    assert np.array_equal(read.low, scales.low) and np.array_equal(read.high, scales.high)
    assert json.loads(scales.to_json()) == scales.to_lists() and scales.to_lists().keys() == {"low", "high"}


@pytest.mark.parametrize(("dimensions", "dtype", "words"), [
    (32, "float32", "32.*1 to 16"), (-1, "float32", "-1.*1 to 16"), (12, "binary", "12.*multiples of 8"),
])  # fmt: skip
def test_unavailable_dimensions_are_refused(dimensions, dtype, words):
    with pytest.raises(InputError, match=words):
        Reduction.of(16, dimensions, dtype)

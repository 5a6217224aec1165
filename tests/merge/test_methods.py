"""The merge of one tensor against textbook formulas in float64, at the rounding floor of the output."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boom_ray.errors import InputError
from boom_ray.merge.methods import METHODS, keeps_equal_tensors
from boom_ray.recipe import Merge, UpdateMerge
from tests.merge.oracle import EXACT_METHODS, FLOOR, SMALL, ours, textbook

SETTINGS = Merge(scale=0.7, iterations=3, density=0.4)
WEIGHTS = {2: [0.35, 0.65], 4: [0.1, 0.2, 0.3, 0.4]}


def count_for(method: str) -> int:
    return 2 if METHODS[method].num_models[1] == 2 else 4


def magnitude_of(tensors, base) -> torch.Tensor:
    total = sum(tensor.double().abs() for tensor in tensors)
    return total if base is None else total + base.double().abs()


@pytest.mark.parametrize("method", EXACT_METHODS)
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_bytes", [1 << 30, SMALL], ids=["whole", "chunks"])
def test_the_error_is_one_rounding_of_the_textbook_result(method, with_base, source, dtype, memory_bytes):
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(70_001, generator=generator)
    tensors = [
        (base + 0.1 * (i + 1) * torch.randn(70_001, generator=generator)).to(source)
        for i in range(count_for(method))
    ]
    origin = base.to(source) if with_base else None
    if METHODS[method].needs_base and origin is None:
        origin = torch.zeros(70_001, dtype=source)
    weights = WEIGHTS[len(tensors)]
    expected = textbook(method, tensors, weights, origin, SETTINGS)
    merged = ours(method, tensors, weights, origin, dtype, SETTINGS, memory_bytes).double()
    smallest = 2.0**-25 if dtype == torch.float16 else 0  # half a unit of its subnormal numbers
    computed = 2.0**-20 if dtype != torch.float32 else 1e-13  # of sums over a block, in float32 or float64
    tolerance = FLOOR[dtype] * expected.abs() + computed * magnitude_of(tensors, origin) + smallest
    wrong = (merged - expected).abs() > tolerance
    # An element at the very threshold of TIES, or whose signs are in balance, may fall on either side.
    assert wrong.sum() <= (10 if method == "ties" else 0)


scales = st.sampled_from([0.0, 1e-30, 1e-6, 1.0, 1e6, 1e15])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(scales, min_size=2, max_size=5),
    st.sampled_from([(0,), (1,), (2,), (257,), (3, 4, 5), ()]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 9),
)
def test_tiny_huge_empty_and_zero_tensors_of_any_shape(scales, shape, with_base, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    origin = torch.randn(shape, generator=generator)
    # Task vectors near zero make coefficients of up to a million, whose products cancel.
    near, largest = (origin, 1.0) if with_base else (0.0, 1e15)
    tensors = [near + min(scale, largest) * torch.randn(shape, generator=generator) for scale in scales]
    for method in EXACT_METHODS:
        most = METHODS[method].num_models[1]
        inputs = tensors[:most]
        base = origin if with_base or METHODS[method].needs_base else None
        weights = [1 / len(inputs)] * len(inputs)
        try:
            merged = ours(method, inputs, weights, base, dtype).double()
        except InputError as error:
            assert "cancel" in str(error) and math.prod(shape) <= 2, (
                "where few dimensions let directions cancel"
            )
            continue
        expected = textbook(method, inputs, weights, base)
        computed = 2.0**-20 if dtype != torch.float32 else 1e-9 if with_base else 1e-12
        tolerance = FLOOR[dtype] * expected.abs() + computed * magnitude_of(inputs, base) + 1e-38
        if math.prod(shape) > 2 or method == "linear":
            wrong = (merged - expected).abs() > tolerance
            assert wrong.sum() <= (2 if method == "ties" else 0), (method, inputs, merged, expected)


@pytest.mark.parametrize("method", EXACT_METHODS)
def test_equal_tensors_are_merged_by_the_formula_and_frozen_ones_copied(method):
    base, moved = torch.randn(2, 5000, generator=torch.Generator().manual_seed(2))
    count = count_for(method)
    weights = [0.7 / count] * count  # as with `normalize: false`
    merged = ours(method, [moved] * count, weights, base, torch.float32, SETTINGS)
    expected = textbook(method, [moved] * count, weights, base, SETTINGS)
    assert torch.allclose(merged.double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(ours(method, [base] * count, weights, base, torch.float32, SETTINGS), base)
    if method not in ("ties", "task_arithmetic"):
        assert torch.equal(ours(method, [moved] * count, [1 / count] * count, base, torch.float32), moved)


@pytest.mark.parametrize("method", METHODS)
def test_scales_lead_from_the_base_or_the_parent_through_the_merge_and_beyond(method):
    generator = torch.Generator().manual_seed(8)
    base = torch.randn(5000, generator=generator)
    tensors = [base + 0.1 * torch.randn(5000, generator=generator) for _ in range(count_for(method))]
    weights = WEIGHTS[len(tensors)]
    merged = ours(method, tensors, weights, base, torch.float32, Merge(density=0.4)).double()
    for kind, origin in ((Merge, base), (UpdateMerge, tensors[0])):
        for scale in (-0.5, 0.0, 1.0, 1.5):
            settings = kind(scale=scale, density=0.4)
            scaled = ours(method, tensors, weights, base, torch.float32, settings).double()
            expected = origin.double() + scale * (merged - origin.double())
            assert torch.allclose(scaled, expected, rtol=1e-6, atol=1e-7), (kind, scale)
    frozen = [tensors[0]] * len(tensors)
    if keeps_equal_tensors(Merge(method=method, density=1.0), weights):
        assert torch.equal(
            ours(method, frozen, weights, base, torch.bfloat16, UpdateMerge(scale=2, density=1)),
            tensors[0].bfloat16(),
        )


@pytest.mark.parametrize("method", ["multislerp", "karcher"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_directions_that_cancel_are_an_error_and_zero_contributes_nothing(method, dtype):
    vector = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"tensor w: .*cancel"):
        ours(method, [vector, -vector], [0.5, 0.5], None, dtype)
    merged = ours(method, [vector, torch.zeros(1000)], [0.5, 0.5], None, torch.float32)
    assert torch.allclose(merged, vector / 2, rtol=1e-6)
    uneven = ours("multislerp", [vector, -vector], [0.75, 0.25], None, torch.float32)
    assert torch.allclose(uneven, vector, rtol=1e-6)


def test_nearly_cancelling_directions_of_bfloat16_are_still_at_the_floor():
    generator = torch.Generator().manual_seed(1)
    vector, rest = torch.randn(2, 200_000, generator=generator)
    tensors = [vector.bfloat16(), (-vector + 0.02 * rest).bfloat16()]
    expected = textbook("multislerp", tensors, [0.5, 0.5], None)
    merged = ours("multislerp", tensors, [0.5, 0.5], None, torch.bfloat16).double()
    assert (merged - expected).norm() <= 2.0**-9 * expected.norm()


def test_multislerp_keeps_the_mean_norm_where_linear_loses_it():
    one, other = torch.eye(2)
    angle = ours("multislerp", [one, other], [0.5, 0.5], None, torch.float32)
    assert angle.norm().item() == pytest.approx(1) and torch.allclose(angle, torch.full((2,), math.sqrt(0.5)))
    assert ours("linear", [one, other], [0.5, 0.5], None, torch.float32).norm().item() == pytest.approx(
        math.sqrt(0.5)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dare_keeps_what_it_should_in_the_mean_and_the_same_however_it_is_cut(dtype):
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(400_000, generator=generator)
    tensors = [base + 0.1 * torch.randn(400_000, generator=generator) for _ in range(3)]
    settings, weights = Merge(density=0.25, seed=3), [0.2, 0.3, 0.5]
    merged = ours("dare_linear", tensors, weights, base, dtype, settings)
    assert torch.equal(merged, ours("dare_linear", tensors, weights, base, dtype, settings, SMALL))
    assert not torch.equal(merged, ours("dare_linear", tensors, weights, base, dtype, Merge(density=0.25)))
    if dtype == torch.float32:
        untouched = (merged == base).float().mean().item()
        assert untouched == pytest.approx(0.75**3, abs=0.01)
        deltas = [tensor - base for tensor in tensors]
        slope = ((merged - base) @ deltas[2]) / (deltas[2] @ deltas[2])
        assert slope.item() == pytest.approx(0.5, abs=0.02)
    same = ours("dare_linear", tensors, weights, base, dtype, Merge(density=1.0))
    linear = ours("linear", tensors, weights, base, dtype)
    assert torch.allclose(same.double(), linear.double(), rtol=2.0**-7)


def test_numbers_beyond_float16_are_refused():
    tensors = [torch.full((5,), 1e5), torch.full((5,), 2e5)]
    with pytest.raises(InputError, match="beyond float16"):
        ours("linear", tensors, [0.5, 0.5], None, torch.float16)

"""The merge of one tensor against textbook formulas in float64, at the rounding floor of the output."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boom_ray.merge import gram
from boom_ray.merge.methods import METHODS, Cancelled

# Half a unit in the last place; 16-bit types are reached through float32, whose half unit comes on top.
FLOOR = {
    torch.float32: 2.0**-24 * (1 + 1e-6),
    torch.bfloat16: 2.0**-8 + 2.0**-24,
    torch.float16: 2.0**-11 + 2.0**-24,
}


def textbook(
    method: str, tensors: list[torch.Tensor], weights: list[float], base: torch.Tensor | None
) -> torch.Tensor:
    """The formulas on the tensors themselves, in float64, without a Gram matrix."""
    inputs = [tensor.double() - (0 if base is None else base.double()) for tensor in tensors]
    if method == "linear":
        merged = sum(w * x for w, x in zip(weights, inputs, strict=True))
    else:
        norms = [x.norm() for x in inputs]
        mean = sum(w * x / n for w, x, n in zip(weights, inputs, norms, strict=True) if n > 0)
        length = sum(w * n for w, n in zip(weights, norms, strict=True))
        merged = (
            mean / mean.norm() * length if isinstance(mean, torch.Tensor) else torch.zeros_like(inputs[0])
        )
    return merged + (0 if base is None else base.double())


def ours(method, tensors, weights, base, dtype, chunk=70_000):
    products = torch.zeros(len(tensors), len(tensors), dtype=torch.float64)
    pieces = [tensor.split(chunk) for tensor in tensors]
    bases = base.split(chunk) if base is not None else [None] * len(pieces[0])
    for parts, part in zip(zip(*pieces, strict=True), bases, strict=True):
        gram.accumulate(products, parts, part)
    coefficients = METHODS[method](products, torch.tensor(weights, dtype=torch.float64))
    done = [
        gram.combine(p, coefficients, dtype, b) for p, b in zip(zip(*pieces, strict=True), bases, strict=True)
    ]
    return torch.cat(done)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_error_is_one_rounding_of_the_textbook_result(method, with_base, source, dtype):
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(150_001, generator=generator)
    tensors = [
        (base + 0.1 * (i + 1) * torch.randn(150_001, generator=generator)).to(source) for i in range(4)
    ]
    origin = base.to(source) if with_base else None
    weights = [0.1, 0.2, 0.3, 0.4]
    expected = textbook(method, tensors, weights, origin)
    merged = ours(method, tensors, weights, origin, dtype).double()
    smallest = 2.0**-25 if dtype == torch.float16 else 0  # half a unit of its subnormal numbers
    assert ((merged - expected).abs() <= FLOOR[dtype] * expected.abs() + smallest).all()


scales = st.sampled_from([0.0, 1e-30, 1e-6, 1.0, 1e6, 1e15])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(scales, min_size=2, max_size=5),
    st.sampled_from([0, 1, 2, 257]),
    st.booleans(),
    st.integers(0, 9),
)
def test_tiny_huge_empty_and_zero_tensors(scales, size, with_base, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = [scale * torch.randn(size, generator=generator) for scale in scales]
    base = torch.randn(size, generator=generator) if with_base else None
    weights = [1 / len(scales)] * len(scales)
    for method in METHODS:
        expected = textbook(method, tensors, weights, base)
        try:
            merged = ours(method, tensors, weights, base, torch.float32)
        except Cancelled:
            assert size == 1, "only in one dimension can random directions cancel"
            continue
        magnitude = sum(tensor.double().abs() for tensor in tensors) + (
            0 if base is None else base.double().abs()
        )
        tolerance = FLOOR[torch.float32] * expected.abs() + 1e-12 * magnitude + 1e-40
        if size > 1 or method == "linear":
            assert ((merged.double() - expected).abs() <= tolerance).all()


def test_directions_that_cancel_are_an_error_and_zero_contributes_nothing():
    vector = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    with pytest.raises(Cancelled):
        ours("multislerp", [vector, -vector], [0.5, 0.5], None, torch.float32)
    merged = ours("multislerp", [vector, torch.zeros(1000)], [0.5, 0.5], None, torch.float32)
    assert torch.allclose(merged, vector / 2, rtol=1e-6)
    uneven = ours("multislerp", [vector, -vector], [0.75, 0.25], None, torch.float32)
    assert torch.allclose(uneven, vector, rtol=1e-6)


def test_multislerp_keeps_the_mean_norm_where_linear_loses_it():
    one, other = torch.eye(2)
    angle = ours("multislerp", [one, other], [0.5, 0.5], None, torch.float32)
    assert angle.norm().item() == pytest.approx(1) and torch.allclose(angle, torch.full((2,), math.sqrt(0.5)))
    assert ours("linear", [one, other], [0.5, 0.5], None, torch.float32).norm().item() == pytest.approx(
        math.sqrt(0.5)
    )

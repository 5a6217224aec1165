"""Statistics of a step against their definitions."""

import itertools

import pytest
import torch

from boom_ray.train.step_statistics import flops_per_token, mean_similarity, measure_flops


def test_mean_similarity_equals_the_mean_over_all_pairs():
    vectors = torch.nn.functional.normalize(torch.randn(7, 5), dim=-1)
    pairs = [vectors[i] @ vectors[j] for i in range(7) for j in range(7) if i != j]
    assert mean_similarity(vectors) == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-5, abs=1e-7)
    assert mean_similarity(vectors[:1]) == pytest.approx(0, abs=1e-6)


def test_flops_per_token_counts_the_weights_of_matrix_products():
    model = torch.nn.Sequential(torch.nn.Embedding(50, 4), torch.nn.Linear(4, 3, bias=False))
    assert flops_per_token(model) == 6 * 12
    model[1].weight.requires_grad_(False)
    assert flops_per_token(model) == 4 * 12


def test_measured_flops_are_operations_over_seconds(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: 0.5 * next(ticks))
    assert measure_flops(torch.device("cpu"), torch.float32, size=8, repeats=3) == 3 * 2 * 8**3 / 0.5

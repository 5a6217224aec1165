"""What a person is warned of, and what is recorded of each step."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from boom_ray.data import rows
from boom_ray.data.collate import Collator
from boom_ray.train.check import ROWS, check_batches, mean_reciprocal_rank
from boom_ray.train.journal import flops_per_token, mean_similarity, measured_flops, padding_fraction
from boom_ray.train.watch import WINDOW, Watch


def warned(losses, grad_norm=0.5, similarity=0.1):
    watch = Watch(max_grad_norm=1.0)
    return [text for loss in losses for text in watch.warnings(loss, grad_norm, similarity)]


def test_a_falling_loss_is_no_reason_to_warn():
    assert warned(np.linspace(3, 1, 4 * WINDOW)) == []


def test_a_loss_that_does_not_move_is_told_once():
    (text,) = warned([2.0] * 4 * WINDOW)
    assert "has not moved" in text and "train.learning_rate" in text


def test_gradients_that_are_always_clipped_are_told_once():
    (text,) = warned(np.linspace(3, 1, 2 * WINDOW), grad_norm=9.0)
    assert "clipped at 1" in text and "train.max_grad_norm" in text


def test_embeddings_that_look_alike_are_told_once():
    (text,) = warned(np.linspace(3, 1, 20), similarity=0.99)
    assert "look alike" in text and "base_model.pooling" in text


def test_similarity_and_padding_are_those_of_the_definition():
    vectors = torch.nn.functional.normalize(torch.randn(7, 5), dim=-1)
    pairs = [vectors[i] @ vectors[j] for i in range(7) for j in range(7) if i != j]
    assert mean_similarity(vectors) == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-5)
    assert padding_fraction(np.array([4, 2, 3]), [np.array([0, 1]), np.array([2])]) == pytest.approx(2 / 11)


def test_flops_count_the_weights_that_multiply():
    model = torch.nn.Sequential(torch.nn.Embedding(50, 4), torch.nn.Linear(4, 3, bias=False))
    assert flops_per_token(model) == 6 * 12
    model[1].weight.requires_grad_(False)
    assert flops_per_token(model) == 4 * 12
    assert measured_flops(torch.device("cpu"), torch.float32, size=256, repeats=3) > 1e8


def collator(count, bag, type="retrieval"):
    data = [rows.normalize({"query": f"q{i}", "pos": [f"p{i}", "same"]})[0] for i in range(count)]
    return Collator("t", type, Dataset.from_list(data), np.arange(bag), "", "{query}", 4)


def test_the_check_asks_rows_that_are_not_in_the_bag_where_there_are_any():
    (outside,) = check_batches({"t": collator(100, 60)}, seed=1)
    asked = {int(outside.texts[query].removeprefix("q")) for query in outside.queries}
    assert len(asked) == ROWS and min(asked) >= 60
    (inside,) = check_batches({"t": collator(70, 70)}, seed=1)
    assert len(inside.queries) == ROWS
    assert not list(check_batches({"t": collator(70, 70, "classification")}, seed=1))


def test_the_rank_of_the_best_right_answer_counts():
    (batch,) = check_batches({"t": collator(100, 60)}, seed=1)
    perfect = torch.eye(len(batch.texts))
    for query, candidate in zip(batch.queries, batch.candidates[:, 0], strict=True):
        perfect[query] = perfect[candidate]
    assert mean_reciprocal_rank(perfect, batch) == 1
    vectors = torch.nn.functional.normalize(torch.randn(len(batch.texts), 8), dim=-1)
    answers = sorted(set(batch.candidates[:, 0].tolist()))
    expected = []
    for query, positives in zip(batch.queries, batch.positives, strict=True):
        order = sorted(answers, key=lambda answer: -float(vectors[query] @ vectors[answer]))
        expected.append(1 / (1 + min(order.index(text) for text in positives if text in answers)))
    assert mean_reciprocal_rank(vectors, batch) == pytest.approx(np.mean(expected), rel=1e-6)
    assert json.dumps(mean_reciprocal_rank(vectors, batch))

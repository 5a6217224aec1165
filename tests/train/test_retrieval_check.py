"""The retrieval check: its rows, and the mean reciprocal rank against its definition."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn.functional import normalize

from boom_ray.data.collate import Batch, Collator
from boom_ray.data.training_row import normalize as normalize_row
from boom_ray.train.retrieval_check import MAX_TASKS, NUM_ROWS, check, check_batches, mean_reciprocal_rank
from tests.data.test_collate import collector_of


def collator(num_rows, num_in_bag, type="retrieval"):
    """The first rows of the task are in the bag; all rows share one of their two positives."""
    data = [normalize_row({"query": f"q{i}", "pos": [f"p{i}", "same"]})[0] for i in range(num_rows)]
    answers = collector_of(data, type).answers()
    return Collator("t", type, Dataset.from_list(data), answers, np.arange(num_in_bag), "", "{query}", 4)


def row_numbers(batch: Batch) -> list[int]:
    return [int(batch.texts[query].removeprefix("q")) for query in batch.queries]


def test_out_of_bag_rows_are_checked_if_there_are_enough():
    (batch,) = check_batches({"t": collator(100, 60)}, seed=1)
    checked = row_numbers(batch)
    assert len(set(checked)) == NUM_ROWS and min(checked) >= 60
    assert batch.candidates.shape == (NUM_ROWS, 1)
    (again,) = check_batches({"t": collator(100, 60)}, seed=1)
    assert row_numbers(again) == checked


@pytest.mark.parametrize(("num_rows", "num_in_bag"), [(70, 70), (70, 70 - NUM_ROWS + 1)])
def test_rows_of_the_bag_are_checked_otherwise(num_rows, num_in_bag):
    (batch,) = check_batches({"t": collator(num_rows, num_in_bag)}, seed=1)
    checked = row_numbers(batch)
    assert len(set(checked)) == NUM_ROWS and max(checked) < num_in_bag


def test_only_the_largest_retrieval_tasks_are_checked():
    types = ["retrieval", "sts"] * MAX_TASKS
    tasks = {str(size): collator(100, size, type) for size, type in enumerate(types, start=NUM_ROWS)}
    tasks |= {"labels": collator(70, 70, "classification"), "topics": collator(70, 70, "clustering")}
    sizes = [len(batch.queries) for batch in check_batches(tasks, seed=1)]
    assert sizes == [NUM_ROWS] * MAX_TASKS
    without = {name: tasks[name] for name in ("labels", "topics")}
    assert check(without, 1, embed=lambda batch: torch.eye(len(batch.texts))) is None


def perfect_vectors(batch: Batch) -> torch.Tensor:
    """Every query has the vector of its positive; all other texts are orthogonal."""
    vectors = torch.eye(len(batch.texts))
    for query, candidate in zip(batch.queries, batch.candidates[:, 0], strict=True):
        vectors[query] = vectors[candidate]
    return vectors


def test_the_rank_of_the_best_positive_counts():
    (batch,) = check_batches({"t": collator(100, 60)}, seed=1)
    assert mean_reciprocal_rank(perfect_vectors(batch), batch) == 1
    vectors = normalize(torch.randn(len(batch.texts), 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    passages = sorted(set(batch.candidates[:, 0].tolist()))
    expected = []
    for row, query in enumerate(batch.queries):
        positives = batch.positives[batch.positives[:, 0] == row, 1]
        order = sorted(passages, key=lambda passage: -float(vectors[query] @ vectors[passage]))
        expected.append(1 / (1 + min(order.index(text) for text in positives if text in passages)))
    assert 0 < np.mean(expected) < 0.9
    assert mean_reciprocal_rank(vectors, batch) == pytest.approx(np.mean(expected), rel=1e-6)


def test_the_check_is_the_mean_over_tasks():
    tasks = {"a": collator(100, 60), "b": collator(70, 40, "sts")}
    scores = [mean_reciprocal_rank(vectors_of(batch), batch) for batch in check_batches(tasks, seed=1)]
    assert scores[0] != scores[1]
    assert check(tasks, 1, vectors_of) == pytest.approx(np.mean(scores))


def vectors_of(batch: Batch) -> torch.Tensor:
    """Arbitrary vectors that are a function of the batch."""
    generator = torch.Generator().manual_seed(len(batch.texts) + row_numbers(batch)[0])
    return normalize(torch.randn(len(batch.texts), 8, generator=generator), dim=-1)

"""Bags and batches: pure functions of corpus and seed, in which every row has its place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.data import bags
from boom_ray.data.batches import epoch_batches, num_batches
from boom_ray.recipe import Bags

sizes = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(2, 200), min_size=1)


@given(sizes, st.lists(st.floats(1, 100), min_size=1, max_size=4), st.integers(0, 99))
def test_a_bag_samples_every_task_without_replacement(sizes, ratios, seed):
    for ratio, bag in zip(ratios, bags.sample(sizes, Bags(ratios=ratios, seed=seed)), strict=True):
        assert bag.keys() == sizes.keys()
        for task, rows in bag.items():
            assert len(rows) == max(1, round(sizes[task] * ratio / 100)) == len(set(rows.tolist()))
            assert rows.min() >= 0 and rows.max() < sizes[task]


@given(sizes, st.integers(0, 99))
def test_half_and_rest_are_disjoint_and_complete(sizes, seed):
    first, rest = bags.sample(sizes, Bags(ratios="{50}-and-rest", seed=seed))
    for task, size in sizes.items():
        assert sorted([*first[task], *rest[task]]) == list(range(size))


@given(sizes, st.sampled_from(["{20,40,60,80,100}", "{50}-and-rest"]), st.integers(0, 99))
def test_counts_equal_those_of_the_sample(sizes, ratios, seed):
    settings = Bags(ratios=ratios, seed=seed)
    drawn = [{task: len(rows) for task, rows in bag.items()} for bag in bags.sample(sizes, settings)]
    assert bags.counts(sizes, settings) == drawn


@given(sizes, st.floats(1, 50), st.floats(1, 50), st.booleans(), st.integers(0, 99))
def test_a_task_has_a_percentage_of_its_own(sizes, ratio, other, partition, seed):
    own = [{"ratio": ratio, "tasks": {"a": other, "b": 0}}, {"ratio": ratio, "seed": 5}]
    settings = Bags(ratios=own, partition=partition, seed=seed)
    first, second = bags.sample(sizes, settings)
    plain = bags.sample(sizes, Bags(ratios=[ratio, ratio], partition=partition, seed=seed))
    counts = bags.counts(sizes, settings)
    assert [{task: len(rows) for task, rows in bag.items()} for bag in (first, second)] == counts
    for task, size in sizes.items():
        percent = {"a": other, "b": 0}.get(task, ratio)
        assert abs(len(first[task]) - size * percent / 100) <= 1 and (percent or not len(first[task]))
        if partition:
            assert not set(first[task]) & set(second[task])
    if not partition:
        assert all(np.array_equal(second[task], plain[1][task]) for task in sizes)
    if "c" in sizes:
        assert np.array_equal(first["c"], plain[0]["c"])


def test_a_sample_depends_on_seed_and_bag_but_not_on_other_tasks():
    settings = Bags(ratios=[50, 50], seed=1)
    alone, both = bags.sample({"a": 100}, settings), bags.sample({"a": 100, "b": 50}, settings)
    assert np.array_equal(alone[0]["a"], both[0]["a"])
    assert not np.array_equal(both[0]["a"], both[1]["a"])
    assert not np.array_equal(alone[0]["a"], bags.sample({"a": 100}, Bags(ratios=[50], seed=2))[0]["a"])


@given(sizes, st.integers(2, 64), st.integers(0, 99))
def test_every_row_is_in_some_batch_and_every_batch_is_full_and_of_one_task(sizes, batch_size, seed):
    bag = bags.sample(sizes, Bags(ratios=[70], seed=seed))[0]
    batches = epoch_batches(bag, batch_size, seed, epoch=0)
    assert len(batches) == num_batches(map(len, bag.values()), batch_size) and batches.rows.shape == (
        len(batches),
        batch_size,
    )
    for task, rows in bag.items():
        of_task = batches.rows[[name == task for name in batches.tasks]]
        assert set(of_task.ravel().tolist()) == set(rows.tolist())


def test_batches_are_a_function_of_seed_and_epoch():
    bag = {"a": np.arange(100), "b": np.arange(30)}
    one, same, other = (epoch_batches(bag, 8, 3, epoch) for epoch in (0, 0, 1))
    assert one.tasks == same.tasks and np.array_equal(one.rows, same.rows)
    assert not np.array_equal(one.rows, other.rows)
    assert "a" in one.tasks[: one.tasks.index("b") + 8], "the order is shuffled over tasks"


def test_a_full_batch_repeats_no_row_when_the_task_has_enough():
    batches = epoch_batches({"a": np.arange(21)}, 8, 0, 0)
    assert all(len(set(rows.tolist())) == 8 for rows in batches.rows)


def test_too_few_rows_for_disjoint_bags_is_an_error():
    with pytest.raises(ValueError, match="cannot be split"):
        bags.sample({"a": 1}, Bags(ratios="{50}-and-rest"))

"""Schedules: within capacity, longest first, ranks in proportion to steps, and the time left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.recipe import Train
from boom_ray.recipe.execution import Elastic, TrainExecution
from boom_ray.train.progress_actor import BagState
from boom_ray.train.schedule import best, longest_first, proportional_ranks, render, schedule_for

steps = st.lists(st.integers(1, 1000), min_size=1, max_size=12)


@given(steps, st.integers(1, 20), st.data())
def test_ranks_stay_within_capacity_and_every_bag_runs(steps, capacity, data):
    ranks = [data.draw(st.integers(1, capacity)) for _ in steps]
    schedule = longest_first(steps, ranks, capacity)
    for bag, (start, end) in enumerate(schedule.spans):
        assert end - start == pytest.approx(steps[bag] / ranks[bag])
        concurrent = [other for other, span in enumerate(schedule.spans) if span[0] <= start < span[1]]
        assert sum(ranks[other] for other in concurrent) <= capacity
    assert sorted(schedule.order) == list(range(len(steps)))
    assert schedule.end >= sum(steps) / capacity - 1e-6


def test_the_longest_bag_starts_first():
    schedule = longest_first([20, 40, 60, 80, 100], [1] * 5, 2)
    assert schedule.order[0] == 4 and schedule.end == 160
    assert longest_first([20, 40, 60, 80, 100], [1] * 5, 5).end == 100


@given(steps, st.integers(0, 40))
def test_proportional_ranks_use_the_capacity_and_moving_one_rank_is_no_improvement(steps, more):
    ranks = proportional_ranks(steps, len(steps) + more)
    assert sum(ranks) == len(steps) + more and min(ranks) >= 1
    end = max(count / width for count, width in zip(steps, ranks, strict=True))
    for taker in range(len(steps)):
        for giver in range(len(steps)):
            if giver != taker and ranks[giver] > 1:
                moved = [r + (i == taker) - (i == giver) for i, r in enumerate(ranks)]
                assert max(c / w for c, w in zip(steps, moved, strict=True)) >= end - 1e-9


@given(steps, st.integers(1, 30), st.integers(1, 8))
def test_the_best_schedule_is_within_a_tenth_of_all_equal_splits(steps, capacity, max_ranks):
    schedule = best(steps, capacity, max_ranks)
    assert max(schedule.ranks) <= min(max_ranks, capacity)
    for lanes in range(1, min(len(steps), capacity) + 1):
        width = min(max_ranks, capacity // lanes)
        assert schedule.end <= 1.1 * longest_first(steps, [width] * len(steps), capacity).end + 1e-9


def test_a_cluster_for_all_bags_gives_them_ranks_in_proportion_to_their_length():
    schedule = best([20, 40, 60, 80, 100], 30, max_ranks=64)
    assert schedule.ranks == [2, 4, 6, 8, 10] and schedule.end == 10
    lines = render(schedule, [f"bag-{i}" for i in range(5)], [20, 40, 60, 80, 100])
    assert len(lines) == 5 and all("|########" in line for line in lines)


def test_elastic_bags_are_planned_with_all_ranks_that_may_come():
    train = Train(batch_size=64, execution=TrainExecution(num_workers=Elastic(min=8, max=24)))
    assert train.execution.fewest_workers == 8
    assert schedule_for([10, 20], train, 64).ranks == [24, 24]
    assert schedule_for([10, 20], train, 16) == longest_first([10, 20], [16, 16], 16)


def test_the_time_left_includes_waiting_bags():
    from types import SimpleNamespace as Job

    from boom_ray.train.bag_monitor import seconds_left

    jobs = [Job(name="bag-1", num_ranks=1, steps=10), Job(name="bag-2", num_ranks=1, steps=10)]
    half = {"step": 5, "num_steps": 10, "loss": 1, "tokens_per_second": 1, "seconds_left": 50}
    states = {"bag-1": BagState(**half, num_ranks=1)}
    assert seconds_left(jobs, states, capacity=2) == pytest.approx(100)
    assert seconds_left(jobs, states, capacity=1) == pytest.approx(150)

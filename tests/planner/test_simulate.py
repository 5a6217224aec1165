"""The simulation compared with schedules without failures, and with closed formulas for failures."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boom_ray.planner.simulate import BagWork, Conditions, best_interval, daly, expected, simulate, young
from boom_ray.train.schedule import longest_first

seconds = st.lists(st.integers(1, 1000), min_size=1, max_size=12)


@given(seconds, st.integers(1, 20), st.data())
def test_without_failures_it_equals_the_schedule(steps, capacity, data):
    ranks = [data.draw(st.integers(1, capacity)) for _ in steps]
    schedule = longest_first(steps, ranks, capacity)
    works = [BagWork(count / width, width) for count, width in zip(steps, ranks, strict=True)]
    result = simulate(works, Conditions(capacity))
    assert result.spans == schedule.spans and result.makespan == schedule.end
    assert result.failures == result.lost == result.saving == result.head == 0


def test_starts_checkpoints_and_the_head_node_add_up():
    conditions = Conditions(8, start=7, finish=3, interval=30, save=2, rank_start=0.5)
    result = simulate([BagWork(100, 4), BagWork(60, 4)], conditions)
    assert result.spans == [(0, 2 + 7 + 100 + 3 * 2 + 3), (0, 4 + 7 + 60 + 1 * 2 + 3)]
    assert result.head == 4 and result.saving == 4 * (3 + 1) * 2


def test_a_checkpoint_and_the_model_wait_for_the_upload_before():
    conditions = Conditions(8, start=7, finish=3, interval=30, save=2, upload=50)
    result = simulate([BagWork(100, 4)], conditions)
    last = 100 - 3 * 30
    assert result.makespan == 7 + 100 + 3 * (2 + 50 - 30) + (50 - last) + 3
    quick = simulate([BagWork(100, 4)], replace(conditions, upload=last))
    assert quick.makespan == 7 + 100 + 3 * 2 + 3


def test_a_bag_resumes_on_free_ranks_and_waits_for_a_node_only_if_there_are_none():
    works = [BagWork(1000, 16, nodes=2)]
    rough = Conditions(16, start=5, failure_rate=1 / 4000, replacement=1e6)
    seed = next(seed for seed in range(99) if simulate(works, rough, seed).failures == 1)
    waits, resumes = simulate(works, rough, seed), simulate(works, replace(rough, capacity=24), seed)
    assert waits.makespan - resumes.makespan == pytest.approx(1e6) and resumes.makespan < 3000
    smaller = simulate([*works, BagWork(10, 8)], replace(rough, capacity=16), seed)
    assert smaller.spans[1][0] == pytest.approx(smaller.spans[0][1]), "the bag that failed is first"


def test_an_attempt_reads_a_checkpoint_if_there_is_one():
    conditions = Conditions(1, start=5, interval=100, failure_rate=1 / 3000)
    slow = replace(conditions, restore=50)
    extra = set()
    for seed in range(60):
        one, other = (simulate([BagWork(1000, 1)], each, seed) for each in (conditions, slow))
        if one.failures == other.failures == 1:
            extra.add(round(other.makespan - one.makespan))
    assert extra == {0, 50}, "none was stored, or one was"


@settings(max_examples=50, deadline=None)
@given(seconds, st.integers(0, 99), st.floats(1e-5, 3e-3), st.floats(5, 500), st.floats(0, 5))
def test_failures_only_cost_time_and_all_work_is_done(steps, seed, rate, interval, save):
    works = [BagWork(count, 1 + index % 3) for index, count in enumerate(steps)]
    calm = Conditions(4, start=2, interval=interval, save=save, upload=1)
    plain = simulate(works, calm, seed)
    rough = simulate(works, replace(calm, failure_rate=rate, replacement=9), seed)
    assert simulate(works, replace(calm, failure_rate=rate, replacement=9), seed) == rough
    for work, (start, end) in zip(works, rough.spans, strict=True):
        assert end - start >= work.seconds + 2 - 1e-6
    assert rough.lost <= rough.failures * max(work.ranks * work.seconds for work in works) + 1e-6
    if not rough.failures:
        assert rough == plain
    else:
        assert sum(end - start for start, end in rough.spans) > sum(end - start for start, end in plain.spans)


@pytest.mark.parametrize(("interval", "save", "restart"), [(300, 20, 60), (900, 20, 0), (60, 5, 120)])
def test_the_mean_with_failures_is_dalys_expectation(interval, save, restart):
    work, mtbf = 40 * interval, 3600.0
    conditions = Conditions(1, start=restart, interval=interval, save=save, failure_rate=1 / mtbf)
    spans = [simulate([BagWork(work, 1)], conditions, seed).makespan for seed in range(2000)]
    first = mtbf * math.expm1(restart / mtbf)
    # Daly saves after the last interval too, and starts without a restart.
    last = mtbf * math.exp(restart / mtbf) * (math.exp((interval + save) / mtbf) - math.exp(interval / mtbf))
    oracle = first + expected(work, interval, save, restart, mtbf) - last
    error = np.std(spans) / math.sqrt(len(spans))
    assert abs(np.mean(spans) - oracle) < 4 * error and error < 0.01 * oracle


def test_a_checkpoint_that_is_not_uploaded_yet_is_lost():
    conditions = Conditions(1, interval=100, save=1, failure_rate=1 / 1000)
    early = [simulate([BagWork(5000, 1)], conditions, seed).lost for seed in range(300)]
    late = [simulate([BagWork(5000, 1)], replace(conditions, upload=80), seed).lost for seed in range(300)]
    assert np.mean(late) > 1.5 * np.mean(early)


def test_the_best_interval_is_dalys_and_nearly_youngs():
    save, mtbf = 10.0, 2 * 3600.0
    conditions = Conditions(1, start=30, save=save, failure_rate=1 / mtbf)
    best, tried = best_interval([BagWork(200_000, 1)], conditions, young(save, mtbf), range(40))
    assert daly(save, mtbf) == pytest.approx(young(save, mtbf), rel=0.05)
    assert daly(save, mtbf) / 2 < best < daly(save, mtbf) * 2
    nearest = min(tried, key=lambda interval: abs(interval - daly(save, mtbf)))
    assert tried[nearest] < 1.005 * tried[best] < tried[min(tried)]


def test_the_formulas_agree_on_the_minimum():
    save, restart, mtbf = 10.0, 30.0, 2 * 3600.0
    grid = np.linspace(50, 2000, 4000)
    times = [expected(1e6, interval, save, restart, mtbf) for interval in grid]
    assert grid[int(np.argmin(times))] == pytest.approx(daly(save, mtbf), rel=0.01)


def test_a_hundred_bags_on_4096_ranks_take_a_moment():
    works = [BagWork(200_000, 40, 5)] * 100
    conditions = Conditions(4096, 90, 15, 600, 5, 20, 0.05 / 3600, 300, 0.0026)
    result = simulate(works, conditions)
    assert result.failures > 500 and result.makespan > 200_000

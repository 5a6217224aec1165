"""Positions on an axis, and the formats of numbers, durations and lists."""

import pytest

from boom_ray.report.scale import MINUS, axis, count, duration, moment, names, signed


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.25, "4.2 s"),
        (48, "48 s"),
        (372, "6 min 12 s"),
        (3600, "1 h"),
        (11_100, "3 h 5 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations_have_their_two_largest_units(seconds, text):
    assert duration(seconds) == text


def test_differences_have_signs_and_zero_has_none():
    assert [signed(value) for value in (0.0456, 0.0, -0.0001)] == ["+0.046", "0.000", "0.000"]
    assert signed(-0.002) == f"{MINUS}0.002"


def test_long_lists_are_shortened():
    assert names(["a"]) == "a" and names(["a", "b", "c"]) == "a, b and c"
    assert names(list("abcdefgh"), most=3) == "a, b and 6 more"
    assert [count(number, "task") for number in (1, 1200)] == ["1 task", "1,200 tasks"]


def test_an_axis_contains_all_values_and_has_round_ticks():
    found = axis([0.13, 0.58])
    assert found.low <= 0.13 and found.high >= 0.58
    assert [label for _, label in found.ticks] == ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6"]
    assert [at for at, _ in found.ticks] == [0, 20, 40, 60, 80, 100]
    assert found.at(0.35) == pytest.approx(50) and found.at(7) == 100 and found.at(-7) == 0


def test_a_tight_axis_ends_at_its_values():
    found = axis([0.0, 130.0], unit=60, tight=True)
    assert (found.low, found.high) == (0, 130)
    assert all(0 <= at <= 100 for at, _ in found.ticks) and found.ticks[0] == (0, "0.0")


def test_moments_are_in_utc():
    assert moment(0) == "1970-01-01 00:00 UTC"

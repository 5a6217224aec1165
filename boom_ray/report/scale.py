"""Positions of values on an axis, and the formats of numbers, durations and lists."""

import datetime
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

MINUS = "\N{MINUS SIGN}"
UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`; `ticks` are positions in percent of its length, with their labels."""

    low: float
    high: float
    ticks: list[tuple[float, str]]

    def at(self, value: float) -> float:
        """Position of a value in percent; values outside the axis are moved to its end."""
        return round(100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low), 2)


def axis(values: Iterable[float], unit: float = 1.0, with_sign: bool = False, tight: bool = False) -> Axis:
    """An axis with round numbers at its ticks, wide enough for all values.

    Args:
        unit: Unit of the labels: 60 to show seconds as minutes.
        with_sign: Write positive labels with a plus.
        tight: End at the smallest and largest value, not at the ticks around them.
    """
    scaled = [value / unit for value in values]
    ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(min(scaled), max(scaled))
    step = ticks[1] - ticks[0]
    if tight:
        ticks = [tick for tick in ticks if min(scaled) <= tick <= max(scaled)]
    low, high = (min(scaled), max(scaled)) if tight else (ticks[0], ticks[-1])
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))  # 1e-9: a step of 0.1 can be 0.0999…
    labels = [signed(tick, decimals) for tick in ticks]
    if not with_sign:
        labels = [label.removeprefix("+") for label in labels]
    positions = [round(100 * (tick - low) / (high - low), 2) for tick in ticks]
    return Axis(low * unit, high * unit, list(zip(positions, labels, strict=True)))


def unit_of(seconds: float) -> tuple[int, str]:
    """Seconds and symbol of the largest unit that fits twice into a duration."""
    return next((unit for unit in UNITS if seconds >= 2 * unit[0]), UNITS[-1])


def duration(seconds: float) -> str:
    """`48 s`, `6 min 12 s`, `3 h 5 min`, `2 d 4 h`."""
    whole = round(seconds)
    for (size, name), (smaller, part) in itertools.pairwise(UNITS):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name} {rest} {part}" if rest else f"{whole // size} {name}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"


def names(values: list[str], most: int = 6) -> str:
    """A list in a sentence: the first names, and the number of the others."""
    shown = values if len(values) <= most else [*values[: most - 1], f"{len(values) - most + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def count(number: int, noun: str) -> str:
    """`1 task`, `1,200 tasks`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def signed(value: float, decimals: int = 3) -> str:
    """A difference with its sign: `+0.046`, `-0.002`, `0.000`."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text.replace("-", MINUS)


def moment(seconds: float) -> str:
    """Seconds since 1970 as date and time in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")

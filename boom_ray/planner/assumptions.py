"""What a plan takes for granted: every number has a name, a unit and a source, and can be given instead."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from boom_ray.errors import BoomError


@dataclass(frozen=True)
class Assumption:
    """A number and where it comes from."""

    value: float
    unit: str
    source: str


class Assumptions:
    """The numbers a plan has asked for so far.

    Args:
        given: Numbers of the user, by name; they come first.
        measured: Numbers of a calibration; they come before what a caller would take.
    """

    def __init__(self, given: Mapping[str, float], measured: Mapping[str, float] | None = None) -> None:
        self.given, self.measured = dict(given), dict(measured or {})
        self.taken: dict[str, Assumption] = {}

    def take(self, name: str, value: float, unit: str, source: str) -> float:
        """The number to use under a name: given, else measured, else `value`, which comes from `source`."""
        if name in self.given:
            value, source = self.given[name], "--assume"
        elif name in self.measured:
            value, source = self.measured[name], "measured by --calibrate"
        self.taken[name] = Assumption(value, unit, source)
        return value

    def check(self) -> None:
        """Refuse numbers that were given and that nothing has asked for.

        Raises:
            BoomError: listing them, with the nearest name that can be given.
        """
        problems = []
        for name in sorted(self.given.keys() - self.taken.keys()):
            nearest = difflib.get_close_matches(name, self.taken, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"allowed: {', '.join(sorted(self.taken))}"
            problems.append(f"{name}: this plan uses no such number; {hint}")
        if problems:
            raise BoomError.of(problems, "--assume:")

    def lines(self) -> Iterator[str]:
        """One line for each number."""
        width = max(map(len, self.taken), default=0)
        for name, taken in sorted(self.taken.items()):
            yield f"{name:{width}}  {quantity(taken.value, taken.unit):>12}  {taken.source}"


def parse(pairs: tuple[str, ...]) -> dict[str, float]:
    """Numbers from `name=value` each.

    Raises:
        BoomError: if one is not of that form.
    """
    given = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            given[name.strip()] = float(value)
        except ValueError:
            raise BoomError(f"--assume {pair}: expected name=number, such as gpu.efficiency=0.4") from None
    return given


def quantity(value: float, unit: str) -> str:
    """A number with four digits at most, and a prefix where the unit takes one: `989 TFLOP/s`, `2.5 USD`."""
    if unit.startswith(("FLOP", "B")):
        for prefix, factor in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if abs(value) >= factor:
                return f"{value / factor:.3g} {prefix}{unit}"
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{number} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Seconds as people read them: `45 s`, `12.5 min`, `3.2 h`, `4.1 days`."""
    for limit, factor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if abs(seconds) < limit:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 86400:,.1f} days"

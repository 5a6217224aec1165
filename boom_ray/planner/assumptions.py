"""The inputs of a plan that are not computed: each has a name, a unit and a source, and can be overridden."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from boom_ray.errors import InputError


@dataclass(frozen=True)
class Assumption:
    """A number and its source."""

    value: float
    unit: str
    source: str


class Assumptions:
    """Every number that a plan has used so far.

    Args:
        overrides: Numbers of the caller by name; they have precedence.
        calibrated: Numbers measured on the cluster by name; they replace defaults.
    """

    def __init__(
        self, overrides: Mapping[str, float] | None = None, calibrated: Mapping[str, float] | None = None
    ) -> None:
        self.overrides, self.calibrated = dict(overrides or {}), dict(calibrated or {})
        self.used: dict[str, Assumption] = {}

    def take(self, name: str, default: float, unit: str, source: str) -> float:
        """The value of a name: overridden, else calibrated, else `default`, which comes from `source`."""
        value = default
        if name in self.overrides:
            value, source = self.overrides[name], "overridden"
        elif name in self.calibrated:
            value, source = self.calibrated[name], "calibrated"
        self.used[name] = Assumption(value, unit, source)
        return value

    def check(self) -> None:
        """Reject overrides that the plan has not used.

        Raises:
            InputError: listing them, each with the nearest name that the plan uses.
        """
        problems = []
        for name in sorted(self.overrides.keys() - self.used.keys()):
            nearest = difflib.get_close_matches(name, self.used, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"allowed: {', '.join(sorted(self.used))}"
            problems.append(f"{name}: this plan has no such assumption; {hint}")
        if problems:
            raise InputError.of(problems, "unknown assumptions:")


def lines(used: Mapping[str, Assumption]) -> Iterator[str]:
    """One line per assumption, sorted by name."""
    width = max(map(len, used), default=0)
    for name, one in sorted(used.items()):
        yield f"{name:{width}}  {quantity(one.value, one.unit):>12}  {one.source}"


def quantity(value: float, unit: str) -> str:
    """At most four digits, with an SI prefix for FLOP and bytes: `989 TFLOP/s`, `2.5 USD`."""
    if unit.startswith(("FLOP", "B")):
        for prefix, factor in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if abs(value) >= factor:
                return f"{value / factor:.3g} {prefix}{unit}"
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{number} {unit}".rstrip()


def duration(seconds: float) -> str:
    """A duration in the unit that suits it: `45 s`, `12.5 min`, `3.2 h`, `4.1 days`."""
    for limit, factor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if abs(seconds) < limit:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 86400:,.1f} days"

"""The table of the study: per arm, its cost, its scores, and its difference to the control."""

from collections.abc import Mapping
from statistics import fmean

from tests.benchmarks.bagging_study.arms import ARMS
from tests.benchmarks.bagging_study.bootstrap import Interval
from tests.benchmarks.bagging_study.contrasts import (
    CONTROL,
    PRIMARY,
    Contrast,
    Domain,
    difference,
    mean_score,
)
from tests.benchmarks.bagging_study.lines import Line

HEADER = [
    "arm",
    "seeds",
    "M tokens",
    "rate",
    "scale",
    "in domain",
    "vs control",
    "out of domain",
    "vs control",
]
DOMAINS: tuple[Domain, Domain] = ("in_domain", "out_of_domain")


def markdown(lines: Mapping[tuple[str, int], Line]) -> str:
    """A row per arm as it is, a row per arm at its best scale, and the primary contrast."""
    rows = [HEADER, ["---", *["---:"] * (len(HEADER) - 1)]]
    for arm in ARMS:
        measured = [line for (name, _), line in sorted(lines.items()) if name == arm.name]
        if measured:
            rows.append(_row(arm.name, measured, lines, scaled=False))
        if measured and measured[0].scaled:
            rows.append(_row(arm.name, measured, lines, scaled=True))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    primary = f"{PRIMARY.arm} minus {PRIMARY.control}, out of domain, both scaled"
    return f"{table}\n\nPrimary contrast, {primary}: {text(difference(lines, PRIMARY))}"


def _row(arm: str, measured: list[Line], lines: Mapping[tuple[str, int], Line], scaled: bool) -> list[str]:
    """Means over the seeds of an arm, and its differences over the seeds that the control has too."""
    rates = {f"{line.learning_rate:g}" for line in measured if line.learning_rate}
    scales = sorted({f"{line.variant(scaled).scale:g}" for line in measured})
    cells = [
        f"{arm}, scaled" if scaled else arm,
        str(len(measured)),
        f"{fmean(line.tokens for line in measured) / 1e6:.2f}",
        ", ".join(sorted(rates)) or "-",
        ", ".join(scales) if rates else "-",
    ]
    for domain in DOMAINS:
        cells.append(f"{fmean(mean_score(line, domain, scaled) for line in measured):.4f}")
        contrast = Contrast(arm, CONTROL, domain, scaled)
        cells.append("-" if arm == CONTROL else text(difference(lines, contrast)))
    return cells


def text(found: Interval | None) -> str:
    """`mean [low, high]`, or what is missing."""
    return f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]" if found else "not measured"

"""The picture of the study: differences to the control with intervals, in and out of domain."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from tests.benchmarks.bagging_study.arms import ARMS
from tests.benchmarks.bagging_study.contrasts import CONTROL, Contrast, difference
from tests.benchmarks.bagging_study.lines import Line
from tests.benchmarks.bagging_study.table import DOMAINS

OFFSET = 0.15


def draw(lines: Mapping[tuple[str, int], Line], path: Path) -> None:
    """One panel per domain: an interval per arm as it is (hollow) and at its best scale (filled)."""
    names = [arm.name for arm in ARMS if arm.name != CONTROL and any(name == arm.name for name, _ in lines)]
    figure = Figure(figsize=(9, 1.6 + 0.4 * len(names)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, domain in zip(panels, DOMAINS, strict=True):
        panel.axvline(0, color="0.6", linewidth=1)
        panel.set_title(domain.replace("_", " "), fontsize=10)
        panel.set_xlabel(f"nDCG@10 minus that of {CONTROL}, 95 %", fontsize=8)
        for row, name in enumerate(names):
            for scaled, offset in ((False, -OFFSET), (True, OFFSET)):
                found = difference(lines, Contrast(name, CONTROL, domain, scaled))
                if found:
                    fill = "C0" if scaled else "white"
                    panel.plot([found.low, found.high], [row + offset] * 2, color="C0")
                    panel.plot(found.mean, row + offset, "o", color="C0", markerfacecolor=fill)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    with rc_context({"svg.hashsalt": "bagging", "svg.fonttype": "none"}):  # the same lines give the same file
        figure.savefig(path, metadata={"Date": None})

"""The differences that the study computes. `PRIMARY` was written down before the first line was measured.

Hypothesis: the merge of three bags of 60 % each is better on sources that it has not seen than one model that
trains as long as three full bags. Both choose learning rate and scale on the development tasks; the primary
measure is nDCG@10 on the out-of-domain tests, each of the six sources with equal weight. All other
differences are secondary: their intervals are not corrected for their number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tests.benchmarks.bagging_study.bootstrap import Interval, interval
from tests.benchmarks.bagging_study.lines import Line

Domain = Literal["in_domain", "out_of_domain"]
CONTROL = "full three times"


@dataclass(frozen=True)
class Contrast:
    """One arm minus another, in one domain, each at scale 1 or at its own best scale."""

    arm: str
    control: str
    domain: Domain
    scaled: bool


PRIMARY = Contrast("{60,60,60}", CONTROL, "out_of_domain", scaled=True)


def difference(lines: Mapping[tuple[str, int], Line], contrast: Contrast) -> Interval | None:
    """The difference over all seeds that both arms have, or None if there is none."""
    seeds = sorted(seed for arm, seed in lines if arm == contrast.arm and (contrast.control, seed) in lines)
    if not seeds:
        return None
    ours, theirs = (
        [scores(lines[arm, seed], contrast.domain, contrast.scaled) for seed in seeds]
        for arm in (contrast.arm, contrast.control)
    )
    tasks = ours[0].keys()
    return interval(
        [
            np.stack([our[task] - their[task] for our, their in zip(ours, theirs, strict=True)])
            for task in tasks
        ]
    )


def scores(line: Line, domain: Domain, scaled: bool) -> dict[str, np.ndarray]:
    """Task -> [queries] float64 nDCG@10 of one domain."""
    test = line.variant(scaled).test
    return {task: packed.values for task, packed in test.items() if task.startswith(f"{domain}/")}


def mean_score(line: Line, domain: Domain, scaled: bool) -> float:
    """nDCG@10, the mean over the tasks of a domain."""
    return float(np.mean([values.mean() for values in scores(line, domain, scaled).values()]))

"""The schedule of a run in which nodes are lost: a discrete-event simulation, and the formulas it is beside.

Bags start longest first, as in `boom_ray.train.schedule`. A bag's attempt starts its ranks one after the
other at the head node, loads, and then works and saves in turn. It fails when one of its nodes is lost, at
random with a constant rate, waits for another node, and goes on from the last checkpoint that was stored.
Bags that share a node are taken to fail by themselves.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Work:
    """One bag.

    Attributes:
        seconds: Of its work on its ranks, without checkpoints.
        ranks: Its ranks.
        nodes: Nodes that they are on.
    """

    seconds: float
    ranks: int
    nodes: int = 1


@dataclass(frozen=True)
class Conditions:
    """What bags meet; times are in seconds.

    Attributes:
        capacity: Ranks there is room for.
        start: From when an attempt's ranks are there to its first work.
        finish: From the end of the work to the end of the bag.
        interval: Of work between two checkpoints.
        save: That a checkpoint stops the work.
        upload: From then until it can be resumed from.
        failure_rate: Of one node, a second.
        replacement: From the loss of a node until there is another.
        rank_start: That the head node is busy with starting one rank.
    """

    capacity: int
    start: float = 0.0
    finish: float = 0.0
    interval: float = math.inf
    save: float = 0.0
    upload: float = 0.0
    failure_rate: float = 0.0
    replacement: float = 0.0
    rank_start: float = 0.0


@dataclass
class Outcome:
    """What happened.

    Attributes:
        spans: Start and end of each bag.
        failures: Attempts that failed.
        lost: Seconds times ranks of work that was done again.
        saving: Seconds times ranks that checkpoints took.
        head: Seconds that the head node was busy with starting ranks.
    """

    spans: list[tuple[float, float]]
    failures: int = 0
    lost: float = 0.0
    saving: float = 0.0
    head: float = 0.0

    @property
    def makespan(self) -> float:
        """When the last bag ends."""
        return max(end for _, end in self.spans)


def simulate(works: Sequence[Work], conditions: Conditions, seed: int = 0) -> Outcome:
    """Run all bags once.

    Args:
        works: The bags; each fits into the capacity.
        seed: Of the failures.
    """
    return _Simulation(works, conditions, np.random.default_rng(seed)).run()


class _Simulation:
    def __init__(self, works: Sequence[Work], conditions: Conditions, random: np.random.Generator) -> None:
        self.works, self.conditions, self.random = works, conditions, random
        self.left = [work.seconds for work in works]
        self.begun = [0.0] * len(works)
        self.outcome = Outcome([(0.0, 0.0)] * len(works))
        self.free, self.head_free = conditions.capacity, 0.0
        self.events: list[tuple[float, int, bool, float]] = []  # time, bag, whether it ended, when work began

    def run(self) -> Outcome:
        waiting = sorted(range(len(self.works)), key=lambda bag: -self.works[bag].seconds)
        now = 0.0
        while waiting or self.events:
            while waiting and self.works[waiting[0]].ranks <= self.free:
                bag = waiting.pop(0)
                self.free -= self.works[bag].ranks
                self.begun[bag] = now
                self._attempt(bag, now)
            now, bag, ended, ready = heapq.heappop(self.events)
            if ended:
                self.free += self.works[bag].ranks
                self.outcome.spans[bag] = self.begun[bag], now
                self.outcome.saving += (
                    self._saves(self.left[bag]) * self.conditions.save * self.works[bag].ranks
                )
            else:
                self._fail(bag, now - ready)
                self._attempt(bag, now + self.conditions.replacement)
        return self.outcome

    def _saves(self, seconds: float) -> int:
        """Checkpoints of an uninterrupted attempt with so much work: none at its end."""
        return max(0, math.ceil(seconds / self.conditions.interval) - 1)

    def _attempt(self, bag: int, now: float) -> None:
        """Start a bag's ranks, and decide how this attempt ends: by itself, or by the loss of a node."""
        work, conditions = self.works[bag], self.conditions
        busy = work.ranks * conditions.rank_start
        self.outcome.head += busy
        self.head_free = max(now, self.head_free) + busy
        ready = self.head_free + conditions.start
        end = ready + self.left[bag] + self._saves(self.left[bag]) * conditions.save + conditions.finish
        rate = conditions.failure_rate * work.nodes
        lost = self.head_free + self.random.exponential(1 / rate) if rate else math.inf
        heapq.heappush(self.events, (min(lost, end), bag, end <= lost, ready))

    def _fail(self, bag: int, elapsed: float) -> None:
        """Go back to the last checkpoint stored, `elapsed` seconds after the attempt's first work."""
        work, conditions, outcome = self.works[bag], self.conditions, self.outcome
        outcome.failures += 1
        if elapsed <= 0:
            return
        period, saves = conditions.interval + conditions.save, self._saves(self.left[bag])
        made = min(saves, int(elapsed // period))
        since = min(conditions.interval, elapsed - made * period)
        done = min(self.left[bag], (made * conditions.interval if made else 0.0) + since)
        stored = min(saves, max(0, int((elapsed - conditions.upload) // period)))
        kept = stored * conditions.interval if stored else 0.0
        self.left[bag] -= kept
        outcome.lost += (done - kept) * work.ranks
        outcome.saving += made * conditions.save * work.ranks


def young(save: float, mtbf: float) -> float:
    """The best interval between checkpoints to first order: root of 2 x save x MTBF (Young, CACM 1974)."""
    return math.sqrt(2 * save * mtbf)


def daly(save: float, mtbf: float) -> float:
    """The same to higher order (Daly, FGCS 2006, equation 37)."""
    if save >= 2 * mtbf:
        return mtbf
    ratio = save / (2 * mtbf)
    return young(save, mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save


def expected(seconds: float, interval: float, save: float, restart: float, mtbf: float) -> float:
    """Expected time of one bag's work with failures (Daly, FGCS 2006, equation 20).

    Args:
        seconds: Of its work.
        restart: Seconds from a failure to work again, in which it may fail once more.
        mtbf: Mean seconds between failures of the bag.
    """
    attempt = mtbf * math.exp(restart / mtbf) * math.expm1((interval + save) / mtbf)
    return attempt * seconds / interval


def best_interval(
    works: Sequence[Work], conditions: Conditions, around: float, seeds: Sequence[int]
) -> tuple[float, dict[float, float]]:
    """The interval between checkpoints with the shortest mean makespan.

    Args:
        around: The middle of those that are tried, from an eighth of it to eight times.

    Returns:
        It, and the mean makespan of each that was tried.
    """
    tried = {}
    for interval in np.geomspace(around / 8, around * 8, 25).tolist():
        changed = replace(conditions, interval=interval)
        tried[interval] = float(np.mean([simulate(works, changed, seed).makespan for seed in seeds]))
    return min(tried, key=lambda interval: tried[interval]), tried

"""A discrete-event simulation of training with node failures, and closed formulas for checkpoint intervals.

Bags start longest first, as in `boom_ray.train.schedule`. Each attempt of a bag starts its ranks one after
the other at the head node, loads, and then alternates between work and checkpoints. A checkpoint waits until
the one before it is stored. An attempt fails when one of its nodes fails, at a constant rate. The bag then
resumes from its last stored checkpoint, as soon as its ranks fit: at once if others are free, else on a
replacement of the node. Bags fail independently of each other, even if they share a node.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class BagWork:
    """One bag.

    Attributes:
        seconds: Seconds of training steps, without checkpoints.
        ranks: Number of ranks.
        nodes: Number of nodes of those ranks.
    """

    seconds: float
    ranks: int
    nodes: int = 1


@dataclass(frozen=True)
class Conditions:
    """The cluster and the checkpoints of a simulated run; times in seconds.

    Attributes:
        capacity: Ranks of the cluster.
        start: From the start of an attempt's ranks to its first work.
        finish: From the end of the work to the end of the bag.
        interval: Work between two checkpoints.
        save: Time that a checkpoint stops the work.
        upload: Time from then until the bag can resume from it.
        failure_rate: Failures of one node per second.
        replacement: From the failure of a node to its replacement.
        rank_start: Time that the head node takes to start one rank.
        restore: Time that an attempt takes to read a checkpoint.
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
    restore: float = 0.0

    @property
    def pause(self) -> float:
        """Time that work stops at a checkpoint, for the one before it and for its own copy."""
        return self.save + max(0.0, self.upload - self.interval)


@dataclass
class SimulatedRun:
    """The result of one simulation.

    Attributes:
        spans: Start and end of each bag.
        failures: Failed attempts.
        lost: Rank-seconds of work that was repeated.
        saving: Rank-seconds of checkpoints.
        head: Seconds that the head node spent starting ranks.
    """

    spans: list[tuple[float, float]]
    failures: int = 0
    lost: float = 0.0
    saving: float = 0.0
    head: float = 0.0

    @property
    def makespan(self) -> float:
        """The end of the last bag."""
        return max(end for _, end in self.spans)


def simulate(works: Sequence[BagWork], conditions: Conditions, seed: int = 0) -> SimulatedRun:
    """Simulate all bags once.

    Args:
        works: The bags; each fits into the capacity.
        seed: Seed of the failures.
    """
    return _Simulation(works, conditions, np.random.default_rng(seed)).run()


class _Simulation:
    def __init__(self, works: Sequence[BagWork], conditions: Conditions, random: np.random.Generator) -> None:
        self.works, self.conditions, self.random = works, conditions, random
        self.left = [work.seconds for work in works]
        self.started: dict[int, float] = {}
        self.has_checkpoint: set[int] = set()
        self.result = SimulatedRun([(0.0, 0.0)] * len(works))
        self.free, self.head_free = conditions.capacity, 0.0
        # End of the attempt, bag, whether the bag is complete, first work of the attempt.
        self.events: list[tuple[float, int, bool, float]] = []
        # Time at which a lost node is replaced, and its ranks.
        self.replacements: list[tuple[float, int]] = []

    def run(self) -> SimulatedRun:
        waiting = sorted(range(len(self.works)), key=lambda bag: -self.works[bag].seconds)
        now = 0.0
        while waiting or self.events:
            # In order: a bag that does not fit also holds back the shorter ones behind it.
            while waiting and self.works[waiting[0]].ranks <= self.free:
                bag = waiting.pop(0)
                self.free -= self.works[bag].ranks
                self.started.setdefault(bag, now)
                self._attempt(bag, now)
            if self.replacements and (not self.events or self.replacements[0][0] <= self.events[0][0]):
                now, ranks = heapq.heappop(self.replacements)
                self.free += ranks
                continue
            now, bag, complete, ready = heapq.heappop(self.events)
            self.free += self.works[bag].ranks
            if complete:
                self.result.spans[bag] = self.started[bag], now
                num_saves = self._saves(self.left[bag])
                self.result.saving += num_saves * self.conditions.pause * self.works[bag].ranks
            else:
                self._fail(bag, now - ready)
                self._lose_node(bag, now)
                waiting.insert(0, bag)
        return self.result

    def _lose_node(self, bag: int, now: float) -> None:
        """Take the ranks of one node of a bag from the capacity until the node is replaced."""
        work = self.works[bag]
        lost = -(-work.ranks // work.nodes)
        self.free -= lost
        heapq.heappush(self.replacements, (now + self.conditions.replacement, lost))

    def _saves(self, seconds: float) -> int:
        """Checkpoints of an attempt without failures; the end of the work needs none."""
        return max(0, math.ceil(seconds / self.conditions.interval) - 1)

    def _attempt(self, bag: int, now: float) -> None:
        """Start a bag's ranks, and schedule the end of this attempt: its completion or a failure."""
        work, conditions = self.works[bag], self.conditions
        starting = work.ranks * conditions.rank_start
        self.result.head += starting
        # The head node starts the ranks of one bag at a time.
        self.head_free = max(now, self.head_free) + starting
        ready = self.head_free + conditions.start + (bag in self.has_checkpoint) * conditions.restore
        num_saves = self._saves(self.left[bag])
        last = self.left[bag] - num_saves * conditions.interval if num_saves else math.inf
        # The model is published once the last checkpoint is stored.
        waiting = max(0.0, conditions.upload - last)
        end = ready + self.left[bag] + num_saves * conditions.pause + waiting + conditions.finish
        rate = conditions.failure_rate * work.nodes
        failure = self.head_free + self.random.exponential(1 / rate) if rate else math.inf
        heapq.heappush(self.events, (min(failure, end), bag, end <= failure, ready))

    def _fail(self, bag: int, elapsed: float) -> None:
        """Return to the last stored checkpoint, `elapsed` seconds after the attempt's first work."""
        work, conditions, result = self.works[bag], self.conditions, self.result
        result.failures += 1
        if elapsed <= 0:
            return
        period, num_saves = conditions.interval + conditions.pause, self._saves(self.left[bag])
        saved = min(num_saves, int(elapsed // period))
        since = min(conditions.interval, elapsed - saved * period)
        # Conditional, because 0 x inf is NaN where no checkpoints are saved.
        done = min(self.left[bag], (saved * conditions.interval if saved else 0.0) + since)
        stored = min(num_saves, max(0, int((elapsed - conditions.upload) // period)))
        kept = stored * conditions.interval if stored else 0.0
        if stored:
            self.has_checkpoint.add(bag)
        self.left[bag] -= kept
        result.lost += (done - kept) * work.ranks
        result.saving += saved * conditions.pause * work.ranks


def young(save: float, mtbf: float) -> float:
    """The optimal checkpoint interval to first order: sqrt(2 x save x MTBF) (Young, CACM 1974)."""
    return math.sqrt(2 * save * mtbf)


def daly(save: float, mtbf: float) -> float:
    """The optimal checkpoint interval to higher order (Daly, FGCS 2006, equation 37)."""
    if save >= 2 * mtbf:
        return mtbf
    ratio = save / (2 * mtbf)
    return young(save, mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save


def expected(seconds: float, interval: float, save: float, restart: float, mtbf: float) -> float:
    """The expected duration of one bag's work with failures (Daly, FGCS 2006, equation 20).

    Args:
        seconds: Seconds of work.
        restart: Seconds from a failure to the next work; a restart can fail too.
        mtbf: Mean seconds between failures of the bag.
    """
    attempt = mtbf * math.exp(restart / mtbf) * math.expm1((interval + save) / mtbf)
    return attempt * seconds / interval


def best_interval(
    works: Sequence[BagWork], conditions: Conditions, center: float, seeds: Sequence[int]
) -> tuple[float, dict[float, float]]:
    """The checkpoint interval with the shortest mean makespan of 25 simulated ones.

    Args:
        center: The simulated intervals range from an eighth of it to eight times it.

    Returns:
        The interval, and the mean makespan of each simulated interval.
    """
    simulated = {}
    for interval in np.geomspace(center / 8, center * 8, 25).tolist():
        changed = replace(conditions, interval=interval)
        simulated[interval] = float(np.mean([simulate(works, changed, seed).makespan for seed in seeds]))
    return min(simulated, key=lambda interval: simulated[interval]), simulated

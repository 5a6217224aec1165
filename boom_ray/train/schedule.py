"""Which bag runs when, on how many ranks: longest first, or all at once with shares of the cluster.

A bag's length is its number of optimizer steps; with n ranks a step is assumed to take 1/n of the time.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """What runs when.

    Attributes:
        ranks: Of each bag.
        spans: Start and end of each bag, in steps of one rank.
    """

    ranks: list[int]
    spans: list[tuple[float, float]]

    @property
    def order(self) -> list[int]:
        """Bags by their start."""
        return sorted(range(len(self.spans)), key=lambda bag: (self.spans[bag][0], -self.spans[bag][1]))

    @property
    def end(self) -> float:
        """When the last bag ends."""
        return max(end for _, end in self.spans)


def longest_first(steps: Sequence[float], ranks: Sequence[int], capacity: int) -> Schedule:
    """Start bags in the order of their length, each as soon as its ranks fit.

    Args:
        steps: Of each bag.
        ranks: Of each bag; at most `capacity`.
        capacity: Ranks the cluster has room for.
    """
    durations = [count / width for count, width in zip(steps, ranks, strict=True)]
    spans = [(0.0, 0.0)] * len(steps)
    free, now = capacity, 0.0
    running: list[tuple[float, int]] = []
    for bag in sorted(range(len(steps)), key=lambda bag: -durations[bag]):
        while free < ranks[bag]:
            now, ended = heapq.heappop(running)
            free += ranks[ended]
        free -= ranks[bag]
        spans[bag] = now, now + durations[bag]
        heapq.heappush(running, (spans[bag][1], bag))
    return Schedule(list(ranks), spans)


def shares(steps: Sequence[float], capacity: int) -> list[int]:
    """Ranks in proportion to steps, at least one each, by always helping the bag that would end last.

    Raises:
        ValueError: if there are more bags than ranks.
    """
    if len(steps) > capacity:
        raise ValueError(f"{len(steps)} bags cannot share {capacity} ranks")
    ranks = [1] * len(steps)
    for _ in range(capacity - len(steps)):
        slowest = max(range(len(steps)), key=lambda bag: steps[bag] / ranks[bag])
        ranks[slowest] += 1
    return ranks


def best(steps: Sequence[float], capacity: int, most: int) -> Schedule:
    """The schedule that ends soonest: shares for all bags at once, or the same number of ranks for each.

    Among those that end within a tenth of it, the one with the fewest ranks a bag: more ranks talk more.

    Args:
        steps: Of each bag.
        capacity: Ranks the cluster has room for.
        most: Ranks of one bag at most, such as its batch size.
    """
    widths = {min(most, capacity // lanes) for lanes in range(1, min(len(steps), capacity) + 1)}
    candidates = [longest_first(steps, [width] * len(steps), capacity) for width in sorted(widths)]
    if len(steps) <= capacity:
        capped = [min(most, width) for width in shares(steps, capacity)]
        candidates.append(longest_first(steps, capped, capacity))
    soonest = min(schedule.end for schedule in candidates)
    near = [schedule for schedule in candidates if schedule.end <= 1.1 * soonest]
    return min(near, key=lambda schedule: sum(schedule.ranks))


def render(schedule: Schedule, names: Sequence[str], steps: Sequence[int], width: int = 40) -> list[str]:
    """A line for each bag, with a bar from its start to its end."""
    lines = []
    for bag in schedule.order:
        start, end = (round(width * moment / schedule.end) for moment in schedule.spans[bag])
        bar = " " * start + "#" * max(1, end - start)
        ranks = f"{schedule.ranks[bag]} rank{'s' * (schedule.ranks[bag] > 1)}"
        lines.append(f"{names[bag]:8}  {steps[bag]:>7,} steps on {ranks:9} |{bar:{width}}|")
    return lines

"""The schedule of the bags: longest first, or all at once with ranks in proportion to their length.

The length of a bag is its number of optimizer steps; on n ranks a step is assumed to take 1/n of the time.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from boom_ray.recipe import Train
from boom_ray.recipe.execution import Elastic


@dataclass(frozen=True)
class Schedule:
    """Ranks and times of all bags.

    Attributes:
        ranks: Number of ranks of each bag.
        spans: Start and end of each bag. The unit is a step on one rank.
    """

    ranks: list[int]
    spans: list[tuple[float, float]]

    @property
    def order(self) -> list[int]:
        """Indices of the bags in the order of their start."""
        return sorted(range(len(self.spans)), key=lambda bag: (self.spans[bag][0], -self.spans[bag][1]))

    @property
    def end(self) -> float:
        """End of the last bag."""
        return max(end for _, end in self.spans)


def longest_first(steps: Sequence[float], ranks: Sequence[int], capacity: int) -> Schedule:
    """Start bags in descending order of their duration, each as soon as its ranks fit.

    Args:
        steps: Steps of each bag.
        ranks: Ranks of each bag, at most `capacity`.
        capacity: Ranks that fit on the cluster.
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


def proportional_ranks(steps: Sequence[float], capacity: int) -> list[int]:
    """Distribute ranks in proportion to steps, at least one each.

    The next rank always goes to the bag that would end last, which minimizes the end of the last bag.

    Raises:
        ValueError: if there are more bags than ranks.
    """
    if len(steps) > capacity:
        raise ValueError(f"got {len(steps)} bags for {capacity} ranks; every bag needs one")
    ranks = [1] * len(steps)
    for _ in range(capacity - len(steps)):
        slowest = max(range(len(steps)), key=lambda bag: steps[bag] / ranks[bag])
        ranks[slowest] += 1
    return ranks


def best(steps: Sequence[float], capacity: int, max_ranks: int) -> Schedule:
    """The shortest schedule: proportional ranks for all bags at once, or equal ranks for every bag.

    Of all schedules within 10 % of the shortest, the one with the fewest ranks: more ranks communicate more.

    Args:
        steps: Steps of each bag.
        capacity: Ranks that fit on the cluster.
        max_ranks: Limit of the ranks of one bag, such as its batch size.
    """
    widths = {min(max_ranks, capacity // lanes) for lanes in range(1, min(len(steps), capacity) + 1)}
    candidates = [longest_first(steps, [width] * len(steps), capacity) for width in sorted(widths)]
    if len(steps) <= capacity:
        capped = [min(max_ranks, width) for width in proportional_ranks(steps, capacity)]
        candidates.append(longest_first(steps, capped, capacity))
    soonest = min(schedule.end for schedule in candidates)
    near = [schedule for schedule in candidates if schedule.end <= 1.1 * soonest]
    return min(near, key=lambda schedule: sum(schedule.ranks))


def schedule_for(steps: Sequence[float], train: Train, capacity: int) -> Schedule:
    """The schedule of bags with equal settings.

    With a range of ranks, every bag takes as many as there are, up to the largest number.

    Args:
        capacity: Ranks that fit on the cluster, at least `train.execution.fewest_workers`.
    """
    num_workers = train.execution.num_workers
    if num_workers == "auto":
        return best(steps, capacity, max_ranks=train.batch_size)
    ranks = min(num_workers.max, capacity) if isinstance(num_workers, Elastic) else num_workers
    return longest_first(steps, [ranks] * len(steps), capacity)


def render(schedule: Schedule, names: Sequence[str], steps: Sequence[int], width: int = 40) -> list[str]:
    """One line per bag, with a bar from its start to its end."""
    lines = []
    for bag in schedule.order:
        start, end = (round(width * moment / schedule.end) for moment in schedule.spans[bag])
        bar = " " * start + "#" * max(1, end - start)
        ranks = f"{schedule.ranks[bag]} rank{'s' * (schedule.ranks[bag] > 1)}"
        lines.append(f"{names[bag]:8}  {steps[bag]:>7,} steps on {ranks:9} |{bar:{width}}|")
    return lines

"""Demand: a command asks the cluster's autoscaler for the nodes it needs, and waits for them with a deadline.

Ray's autoscaler starts nodes for pending tasks, actors and placement groups, and for the bundles given to
`ray.autoscaler.sdk.request_resources`. Those are one set per cluster, which outlives its driver and which
the next caller replaces: Ray Train and Ray Data replace it all the time. So a command asks by pending tasks
and actors where it has some, and otherwise by placement groups; Ray removes both with the driver, also with
one that was killed.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from boom_ray.errors import ClusterError
from boom_ray.runtime import capacity, node_types

TIMEOUT_S = 600.0
POLL_SECONDS = 1.0
LOG_AFTER_SECONDS = 2.0
SECONDS_BETWEEN_LINES = 30.0
SETTLED_SECONDS = 60.0  # without a node that starts: the autoscaler looks for demand every five seconds
MAX_GROUPS = 100  # placement groups of one command: the autoscaler packs them in Python, again and again

logger = logging.getLogger(__name__)


class Wait:
    """A wait until the cluster has capacity for some processes.

    Call `goes_on` again and again. It logs what is awaited, for how long, and what the autoscaler does.

    Args:
        process: Ray resources of a process.
        least: Processes without which the wait ends with an error.
        wanted: Processes that are awaited too if they may fit, but only as long as nodes are starting; by
            default `least`.
        timeout_s: Seconds until the wait ends. They start again when capacity is lost.
        remedy: What a user can do for a smaller or a larger capacity, as a sentence.

    Raises:
        ClusterError: if the cluster has no capacity for `least`, and its autoscaler can start no node for it.
    """

    def __init__(
        self,
        process: Mapping[str, float],
        least: int,
        timeout_s: float,
        remedy: str,
        wanted: int | None = None,
    ) -> None:
        self.process, self.least, self.timeout_s, self.remedy = process, least, timeout_s, remedy
        self.wanted = least if wanted is None else max(least, min(wanted, capacity.potential(process)))
        refuse_impossible(process, least, remedy)
        self._begin()

    def _begin(self) -> None:
        self.began = self.moved = time.monotonic()
        self.looked, self.logged, self.line, self.found = float("-inf"), 0.0, "", 0
        self.is_waiting = False

    def goes_on(self) -> bool:
        """Whether to wait longer. Looks at the cluster at most every `POLL_SECONDS`.

        Raises:
            ClusterError: at the deadline, if the cluster has no capacity for `least` processes.
        """
        now = time.monotonic()
        if now - self.looked >= POLL_SECONDS:
            self._look(now)
        return self.is_waiting

    def _look(self, now: float) -> None:
        found = capacity.live(self.process)
        if found >= self.wanted:
            self._begin()
            self.looked = now
            return
        starting, report = autoscaler_report()
        if starting or found > self.found:
            self.moved = now
        self.looked, self.found = now, found
        is_late, has_settled = now - self.began > self.timeout_s, now - self.moved > SETTLED_SECONDS
        if found < self.least and is_late:
            raise too_small(self.process, self.least, self.remedy, self.timeout_s)
        self.is_waiting = found < self.least or not (is_late or has_settled)
        if self.is_waiting:
            self._log(now - self.began, report)

    def _log(self, seconds: float, report: str) -> None:
        line = f"capacity for {self.found} of {self.wanted} workers of {dict(self.process)}. {report}"
        is_due = seconds - self.logged >= SECONDS_BETWEEN_LINES or line != self.line
        if seconds >= LOG_AFTER_SECONDS and is_due:
            logger.info("waiting, %.0f s of at most %g s: %s", seconds, self.timeout_s, line)
            self.logged, self.line = seconds, line


def await_capacity(
    process: Mapping[str, float],
    least: int = 1,
    wanted: int | None = None,
    timeout_s: float = TIMEOUT_S,
    remedy: str = "",
) -> int:
    """Ask for nodes with placement groups, and wait until the cluster has capacity; see `Wait`.

    Returns:
        The capacity, regardless of its current use, in processes.

    Raises:
        ClusterError: if there is none for `least` processes in time, or there never can be.
    """
    wait = Wait(process, least, timeout_s, remedy, wanted)
    if wait.goes_on():
        with _asked_for(process, wait.least, wait.wanted):
            while wait.goes_on():
                time.sleep(POLL_SECONDS)
    return capacity.live(process)


@contextmanager
def _asked_for(process: Mapping[str, float], least: int, wanted: int) -> Iterator[None]:
    """Within the block, placement groups ask for processes: for `least` all or none, for the others singly.

    Several commands that each hold a part of the nodes that any of them needs would wait for each other.
    """
    from ray.util import placement_group, remove_placement_group  # here, because plans are made without Ray

    bundle = {key: amount for key, amount in process.items() if amount}
    size = max(1, -(-(wanted - least) // MAX_GROUPS))
    sizes = [least, *(min(size, wanted - start) for start in range(least, wanted, size))]
    groups = [placement_group([bundle] * number) for number in sizes if bundle]
    try:
        yield
    finally:
        for group in groups:
            remove_placement_group(group)


def refuse_impossible(process: Mapping[str, float], least: int, remedy: str) -> None:
    """Refuse what neither the live nodes nor those that the autoscaler may start have capacity for.

    Raises:
        ClusterError: if all node types are known. Without an autoscaler, nodes may join by hand.
    """
    if node_types.declared().are_known and capacity.potential(process) < least:
        raise too_small(process, least, remedy)


def too_small(
    process: Mapping[str, float], least: int, remedy: str, timeout_s: float | None = None
) -> ClusterError:
    """The error of a cluster without capacity for `least` processes, after `timeout_s` or for ever."""
    import ray  # here, because plans are made without Ray

    total = ray.cluster_resources()
    after = "" if timeout_s is None else f" after {timeout_s:g} s"
    return ClusterError(
        f"the cluster is too small{after}: required are {least} workers of {dict(process)}, the cluster has "
        f"{ ({key: total.get(key, 0) for key in process}) } on {len(ray.nodes())} nodes, enough for "
        f"{capacity.live(process)}. {_startable_types(process)}{autoscaler_report()[1]} {remedy}"
    )


def _startable_types(process: Mapping[str, float]) -> str:
    """The types of nodes that the autoscaler may start, with the resources that a process needs."""
    declared = node_types.declared()
    types = [
        f"{one.max_nodes} {one.name} of { ({key: one.resources.get(key, 0) for key in process}) }"
        for one in declared.types
    ]
    limit = f", together at most {declared.max_nodes} nodes"
    return f"Its autoscaler may start {', '.join(types)}{limit}. " if types else ""


def autoscaler_report() -> tuple[bool, str]:
    """Whether nodes are starting, and a sentence on what the autoscaler of the cluster does."""
    from boom_ray.runtime import ray_private  # here, because plans are made without Ray

    if not node_types.declared().types:
        return False, "The cluster has no autoscaler: start nodes by hand."
    starting, failures = ray_private.autoscaler_report()
    parts = [f"{number} {name} starting" for name, number in sorted(starting.items())]
    parts += [f"{name} failed to start ({' '.join(reason.split())})" for name, reason in failures.items()]
    return bool(starting), f"The autoscaler reports: {'; '.join(parts) or 'no node is starting'}."

"""The driver's view of the running bags: progress, warnings, and the heartbeat."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import ray

from boom_ray.errors import BoomError
from boom_ray.runs.driver import Driver
from boom_ray.runs.heartbeat import BagProgress
from boom_ray.runtime.progress import Progress
from boom_ray.train.bag_job import BagJob
from boom_ray.train.progress_actor import BagState
from boom_ray.train.schedule import longest_first

logger = logging.getLogger(__name__)


class BagMonitor:
    """Shows one counter per bag and one for all, logs warnings, and passes the states to the heartbeat."""

    def __init__(self, jobs: list[BagJob], progress_actor: Any, progress: Progress, driver: Driver) -> None:
        self.jobs, self.actor, self.progress, self.driver = jobs, progress_actor, progress, driver
        self.num_warnings, self.num_ranks = 0, dict[str, int]()

    def update(self, capacity: int, failures: Mapping[str, BoomError]) -> None:
        """Poll the progress actor, and show what has changed.

        Args:
            capacity: Ranks that fit on the cluster.
            failures: Errors of failed bags by name.
        """
        states, warnings = ray.get(self.actor.read.remote())
        self.driver.show(_heartbeat_states(states, failures))
        for text in warnings[self.num_warnings :]:
            logger.warning("%s", text)
        self.num_warnings = len(warnings)  # an actor that was restarted begins with none
        for name, state in sorted(states.items()):
            self._log_resize(name, state.num_ranks)
            remaining = f"{state.seconds_left:,.0f} s left" if state.seconds_left else "done"
            note = f"loss {state.loss:.4f}  {state.tokens_per_second:,.0f} tokens/s  {remaining}"
            self.progress.update(name, state.step, state.num_steps, note)
        if states and len(self.jobs) > 1:
            completed = sum(state.step for state in states.values())
            total = sum(job.steps for job in self.jobs)
            end = time.time() + seconds_left(self.jobs, states, capacity)
            note = time.strftime("end %H:%M:%S", time.localtime(end))
            self.progress.update("all bags", completed, total, note)

    def _log_resize(self, name: str, num_ranks: int) -> None:
        before = self.num_ranks.get(name, num_ranks)
        if num_ranks != before:
            logger.info("%s: goes on with %d ranks, before %d", name, num_ranks, before)
        self.num_ranks[name] = num_ranks


def _heartbeat_states(
    states: Mapping[str, BagState], failures: Mapping[str, BoomError]
) -> dict[str, BagProgress]:
    reported = {name: BagProgress(**asdict(state)) for name, state in states.items()}
    for name, error in failures.items():
        reported[name] = reported.get(name, BagProgress()).model_copy(update={"failed": str(error)})
    return reported


def seconds_left(jobs: Sequence[BagJob], states: Mapping[str, BagState], capacity: int) -> float:
    """Estimated seconds until the last bag ends, if waiting bags run at the mean pace of the started ones.

    Args:
        states: States of the started bags by name.
        capacity: Ranks that fit on the cluster.
    """
    rank_seconds_per_step = [
        state.seconds_left / (state.num_steps - state.step) * state.num_ranks
        for state in states.values()
        if state.step < state.num_steps
    ]
    pace = sum(rank_seconds_per_step) / len(rank_seconds_per_step) if rank_seconds_per_step else 0.0
    work = [
        states[job.name].seconds_left * states[job.name].num_ranks if job.name in states else pace * job.steps
        for job in jobs
    ]
    # Nodes may have been lost since the bags were scheduled.
    capacity = max(1, capacity)
    return longest_first(work, [min(job.num_ranks, capacity) for job in jobs], capacity).end

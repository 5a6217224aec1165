"""Tasks for a fixed set of actors: an actor gets the next task when it has finished one."""

from collections import deque
from collections.abc import Callable
from typing import Any

import ray

from boom_ray.errors import ClusterError
from boom_ray.runtime.cluster import ProcessLost, result_of

STOP_SECONDS = IDLE_SECONDS = 10.0
Callback = Callable[[Any], None]


class WorkerPool:
    """Runs method calls on actors.

    `ray.util.ActorPool` (Ray 2.60) cannot replace it:
      - `get_next_unordered` returns a result without its task, so there is no place for a callback per task.
      - When a task fails, it submits the next waiting task to the same actor and only then raises. That task
        would write to a stage that the driver is about to delete.
      - It keeps the references of running tasks private. `_stop` waits for exactly those.

    Args:
        workers: Actor handles.
        remedy: Error text for a process that keeps dying.
    """

    def __init__(self, workers: list[Any], remedy: str) -> None:
        self.workers, self.remedy = workers, remedy
        self.waiting: deque[tuple[str, tuple[Any, ...], Callback]] = deque()

    def add(self, method: str, *arguments: Any, then: Callback) -> None:
        """Queue a method call for the next free worker; `then` gets its result, and may queue more."""
        self.waiting.append((method, arguments, then))

    def run(self) -> None:
        """Run all tasks, and those that their callbacks add. All workers are stopped afterwards.

        Raises:
            BoomError: the error of a task.
            ClusterError: if the process of a worker died more often than Ray restarts it.
        """
        free = list(self.workers)
        running: dict[Any, tuple[Any, Callback]] = {}
        try:
            while self.waiting or running:
                while free and self.waiting:
                    method, arguments, then = self.waiting.popleft()
                    worker = free.pop()
                    running[getattr(worker, method).remote(*arguments)] = worker, then
                finished, _ = ray.wait(list(running), timeout=IDLE_SECONDS if free else None)
                if not finished:
                    # A busy worker may not have started yet, because the cluster has no CPU for it. The CPU
                    # of an idle worker lets it start; without this, the merge would wait forever.
                    ray.kill(free.pop())
                for reference in finished:
                    worker, then = running.pop(reference)
                    then(self._result(reference))
                    free.append(worker)
        finally:
            self._stop(list(running))

    def _result(self, reference: Any) -> Any:
        try:
            return result_of(reference)
        except ProcessLost as error:
            raise ClusterError(f"{self.remedy}. Ray reports: {error.reason}") from error

    def _stop(self, running: list[Any]) -> None:
        """Kill all workers, and wait until their tasks have ended.

        A worker that still starts a task after the driver has deleted the stage would create it again.
        """
        for worker in self.workers:
            ray.kill(worker)
        if running:
            ray.wait(running, num_returns=len(running), timeout=STOP_SECONDS)

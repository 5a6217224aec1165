"""Work for a fixed set of actors: each gets the next task when it is done with one, and tasks beget tasks."""

from collections import deque
from collections.abc import Callable
from typing import Any

import ray

from boom_ray.errors import BoomError
from boom_ray.runtime.cluster import ProcessLost, result_of

STOP_SECONDS = IDLE_SECONDS = 10.0
Then = Callable[[Any], None]


class Pool:
    """Runs method calls on actors.

    Args:
        workers: Actor handles.
        remedy: What to say when the process behind an actor keeps dying.
    """

    def __init__(self, workers: list[Any], remedy: str) -> None:
        self.workers, self.remedy = workers, remedy
        self.waiting: deque[tuple[str, tuple[Any, ...], Then]] = deque()

    def add(self, method: str, *arguments: Any, then: Then) -> None:
        """Have a method called on whichever worker is free; `then` gets its result, and may add more."""
        self.waiting.append((method, arguments, then))

    def run(self) -> None:
        """Run everything; no worker is left running, however it ends.

        Raises:
            BoomError: what a task raised, or that its process died again and again.
        """
        free = list(self.workers)
        running: dict[Any, tuple[Any, Then]] = {}
        try:
            while self.waiting or running:
                while free and self.waiting:
                    method, arguments, then = self.waiting.popleft()
                    worker = free.pop()
                    running[getattr(worker, method).remote(*arguments)] = worker, then
                finished, _ = ray.wait(list(running), timeout=IDLE_SECONDS if free else None)
                if not finished:  # the CPU of an idle worker may be what another waits for
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
            raise BoomError(f"{self.remedy}. Ray says: {error.reason}") from error

    def _stop(self, running: list[Any]) -> None:
        """End workers: one that began a task only now would make the stage anew after it was deleted."""
        for worker in self.workers:
            ray.kill(worker)
        if running:
            ray.wait(running, num_returns=len(running), timeout=STOP_SECONDS)

"""Where the first rank of every bag says how far it is, for the driver to read."""

import time
from collections import Counter
from dataclasses import dataclass, replace

import ray


@dataclass(frozen=True)
class BagState:
    """How far one bag is.

    Attributes:
        step: Optimizer steps done.
        num_steps: All of them.
        loss: Of the last step.
        tokens_per_second: Since the bag was started.
        seconds_left: At the pace so far.
        attempt: Which start of the bag this is, from 1; the board counts them.
        time: When the board was told, in seconds since 1970.
    """

    step: int
    num_steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float
    attempt: int = 1
    time: float = 0.0


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class ProgressBoard:
    """Keeps the last state of each bag, and all warnings; they are not worth a run if its process dies."""

    def __init__(self) -> None:
        self.states: dict[str, BagState] = {}
        self.attempts: Counter[str] = Counter()
        self.warnings: list[str] = []

    def begin(self, name: str) -> None:
        """Note that a bag is started, or started again."""
        self.attempts[name] += 1

    def tell(self, name: str, state: BagState) -> None:
        """Note the state of one bag."""
        self.states[name] = replace(state, attempt=self.attempts[name], time=time.time())

    def warn(self, name: str, text: str) -> None:
        """Note what a person should look at."""
        self.warnings.append(f"{name}: {text}")

    def read(self) -> tuple[dict[str, BagState], list[str]]:
        """The states of all bags that have begun, and all warnings so far."""
        return self.states, self.warnings

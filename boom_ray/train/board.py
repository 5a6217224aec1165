"""Where the first rank of every bag says how far it is, for the driver to read."""

from dataclasses import dataclass

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
    """

    step: int
    num_steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class ProgressBoard:
    """Keeps the last state of each bag, and all warnings; they are not worth a run if its process dies."""

    def __init__(self) -> None:
        self.states: dict[str, BagState] = {}
        self.warnings: list[str] = []

    def tell(self, name: str, state: BagState) -> None:
        """Note the state of one bag."""
        self.states[name] = state

    def warn(self, name: str, text: str) -> None:
        """Note what a person should look at."""
        self.warnings.append(f"{name}: {text}")

    def read(self) -> tuple[dict[str, BagState], list[str]]:
        """The states of all bags that have begun, and all warnings so far."""
        return self.states, self.warnings

"""The progress actor: every bag reports its state and its placement here, for the driver."""

import time
from collections import Counter
from dataclasses import dataclass, replace

import ray
from ray.util.placement_group import PlacementGroup


@dataclass(frozen=True)
class BagState:
    """The progress of one bag.

    Attributes:
        step: Completed optimizer steps.
        num_steps: Total optimizer steps.
        loss: Loss of the last step.
        tokens_per_second: Mean since the start of the bag, over all ranks.
        seconds_left: Estimate from the mean pace so far.
        num_ranks: Ranks that train it.
        attempt: Attempt of the bag, from 1; set by the actor.
        time: When the actor received the state, in seconds since 1970; set by the actor.
    """

    step: int
    num_steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float
    num_ranks: int
    attempt: int = 1
    time: float = 0.0


# Ray restarts the actor without its state: the ranks report again at their next step, so that only warnings
# and attempt counts are lost. A run never fails because of it.
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class ProgressActor:
    """Holds the last state and placement of each bag, and all warnings."""

    def __init__(self) -> None:
        self.states: dict[str, BagState] = {}
        self.attempts: Counter[str] = Counter()
        self.warnings: list[str] = []
        self.placements: dict[str, PlacementGroup] = {}

    def begin_attempt(self, name: str) -> None:
        """Count a start or restart of a bag."""
        self.attempts[name] += 1

    def report(self, name: str, state: BagState) -> None:
        """Store the state of one bag."""
        self.states[name] = replace(state, attempt=self.attempts[name], time=time.time())

    def warn(self, name: str, text: str) -> None:
        """Store a warning about one bag."""
        self.warnings.append(f"{name}: {text}")

    def place(self, name: str, group: PlacementGroup) -> None:
        """Store the placement group of the ranks of one bag."""
        self.placements[name] = group

    def placement(self, name: str) -> PlacementGroup | None:
        """The placement group of the last attempt of a bag."""
        return self.placements.get(name)

    def read(self) -> tuple[dict[str, BagState], list[str]]:
        """States of all bags that have started, and all warnings so far."""
        return self.states, self.warnings

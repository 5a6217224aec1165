"""Notices that a node of the bag is about to be taken away."""

import ray.train

SECONDS_BETWEEN_LOOKS = 2.0  # Ray Train reads the notices of the cluster every 5 s


class PreemptionNotices:
    """Looks for notices, which all ranks must do after the same steps."""

    def __init__(self) -> None:
        self._looked, self._nodes = 0.0, set[str]()

    def is_new(self, seconds: float) -> bool:
        """Whether there is a notice about a node that had none before; equal on all ranks.

        Args:
            seconds: A clock that has the same value on all ranks.
        """
        if seconds - self._looked < SECONDS_BETWEEN_LOOKS:
            return False
        self._looked = seconds
        info = ray.train.get_preemption_info()  # waits for all ranks, and is that of the first
        found = set(info.preempted_node_ids if info else ())
        is_new = not found <= self._nodes
        self._nodes |= found
        return is_new

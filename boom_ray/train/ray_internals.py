"""The private API of Ray Train that a bag uses; `tests/train/test_ray_internals.py` fails when it moves."""

from collections.abc import Callable
from typing import Any, cast

from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.callback import RayTrainCallback, WorkerGroupCallback
from ray.util.placement_group import PlacementGroup


def keep_coordinator_here() -> None:
    """Start the process that divides the nodes among trainers on this node, if there is none yet.

    The first trainer would start it on a worker node. It outlives all trainers, so that the autoscaler would
    never end that node; and once the node is lost, no elastic bag would know of others.
    """
    get_or_create_autoscaling_coordinator()


class Trainer(TorchTrainer):
    """A trainer without the process that Ray Train starts on the head for each, of some 200 MiB.

    That process removes the placement group of the ranks if the controller dies, since Ray itself keeps it
    until the job ends. Here the group is reported instead, for the driver to remove it.

    Args:
        report: Called in the controller with the placement group of each attempt.
        arguments: Of `TorchTrainer`.
    """

    def __init__(self, *arguments: Any, report: Callable[[PlacementGroup], None], **named: Any) -> None:
        self.report = report
        super().__init__(*arguments, **named)

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [
            RanksPlaced(self.report) if isinstance(callback, PlacementGroupCleanerCallback) else callback
            for callback in super()._create_default_callbacks()  # type: ignore[misc]  # of the older class
        ]


def variables() -> dict[str, str]:
    """Variables of this process that Ray Train reads where a trainer runs, if they are set."""
    return cast(dict[str, str], get_env_vars_to_propagate())


class RanksPlaced(WorkerGroupCallback):
    """Reports the placement group of the ranks."""

    def __init__(self, report: Callable[[PlacementGroup], None]) -> None:
        self.report = report

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Ray Train has started the ranks of an attempt."""
        state = worker_group.get_worker_group_state()
        self.report(cast(PlacementGroup, state.placement_group_handle.placement_group))

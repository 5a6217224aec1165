"""The processes in which models are measured: how many at once, and with what share of the cluster."""

from dataclasses import dataclass, field
from typing import Any

from boom_ray.recipe.execution import EvaluateExecution
from boom_ray.runtime import capacity, resources

MAX_THREADS = 8  # of one process: on texts of a few hundred tokens, more threads gain little


@dataclass(frozen=True)
class Slots:
    """The processes that measure at the same time.

    Attributes:
        number: Processes for which the cluster has room, with the nodes that its autoscaler may start.
        threads: CPU threads of each. They may exceed the CPUs that it reserves: one CPU by default, so that a
            cluster on which other processes have reserved some still has room.
        options: Options of its Ray task.
        reserved: Ray resources of each.
    """

    number: int
    threads: int
    options: dict[str, Any]
    reserved: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, execution: EvaluateExecution, num_models: int) -> "Slots":
        """The slots of `num_models` models on the cluster this process is connected to.

        Threads are as many as leave the models that are measured at once room side by side.
        """
        default = {"CPU": 1.0, "GPU": 1.0} if execution.use_gpu else {"CPU": 1.0}
        reserved = default | execution.resources_per_model
        room = capacity.potential(reserved)
        threads = int(execution.resources_per_model.get("CPU", 0)) or next(
            (
                number
                for number in range(MAX_THREADS, 1, -1)
                if capacity.potential(reserved | {"CPU": number}) >= min(room, num_models)
            ),
            1,
        )
        number = max(1, min(room, capacity.potential(reserved | {"CPU": threads})))
        if room > capacity.live(reserved):
            # The autoscaler starts nodes for what is reserved.
            reserved["CPU"] = max(threads, reserved["CPU"])
        # Threads are not reserved otherwise, so that Ray itself would fill one node after another.
        options = {**resources.task_options(reserved), "scheduling_strategy": "SPREAD"}
        return cls(number, threads, options, reserved)

    def shares(self, num_models: int, num_tasks: int) -> int:
        """Processes of one of `num_models` models, among which its `num_tasks` tasks are divided."""
        return min(num_tasks, max(1, self.number // num_models))

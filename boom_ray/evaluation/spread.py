"""Models on tasks, spread over the cluster: a process loads a model once, and measures its tasks in turn."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from boom_ray.errors import BoomError
from boom_ray.evaluation.protocol import EvaluationProtocol, EvaluationTask, Subject
from boom_ray.evaluation.slots import Slots
from boom_ray.runtime import devices
from boom_ray.runtime.cluster import ProcessLost, result_of
from boom_ray.runtime.demand import POLL_SECONDS, Wait

MAX_RETRIES = 3  # of a task whose process was lost; as Ray retries its tasks
REMEDY = (
    "Choose another device, give models less (--num-cpus, --num-gpus; evaluate.execution.resources_per_model"
    "), add nodes, or wait longer (--start-timeout, evaluate.execution.start_timeout_s)"
)
Job = tuple[EvaluationTask[Any], Any]  # with the cached result, if it is incomplete
Result = tuple[Subject, EvaluationTask[Any], Any]  # with the result, or the `BoomError` that was raised


@dataclass(eq=False)
class ModelShare:
    """Tasks that one process measures one after another with one model.

    Attributes:
        subject: The model.
        jobs: Its tasks that are not measured yet; the first one is in progress.
        losses: Processes that were lost during the first one.
    """

    subject: Subject
    jobs: deque[Job]
    losses: int = 0

    def may_repeat(self) -> bool:
        """Whether the first task is measured again, after another process was lost with it."""
        self.losses += 1
        return self.losses <= MAX_RETRIES

    def completed(self, result: Any) -> Result:
        """The result of the first task, which is removed."""
        self.losses = 0
        return self.subject, self.jobs.popleft()[0], result


def measured(missing: Mapping[Subject, Sequence[Job]], protocol: EvaluationProtocol) -> Generator[Result]:
    """Measure models on tasks.

    Args:
        missing: The tasks of each model.

    Yields:
        Results in the order in which they are ready. Closing the iterator cancels the others.

    Raises:
        ClusterError: if the cluster has no capacity for one process within `start_timeout_s`.
    """
    if not missing:
        return
    slots = Slots.of(protocol.execution, len(missing))
    wait = Wait(slots.reserved, 1, protocol.execution.start_timeout_s, REMEDY)
    # Declared with its resources: then Ray ends a process that used a GPU, which frees the memory.
    task = ray.remote(num_returns="streaming", max_retries=0, **slots.options)(_measure)
    running: dict[Any, ModelShare] = {}

    def start(share: ModelShare) -> None:
        running[task.remote(share.subject, list(share.jobs), protocol, slots.threads)] = share

    try:
        for subject, jobs in missing.items():
            num_shares = slots.shares(len(missing), len(jobs))
            for number in range(num_shares):
                start(ModelShare(subject, deque(jobs[number::num_shares])))
        while running:
            ready: list[Any] = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)[0]
            if not ready:  # the tasks may wait for nodes, for which they are the demand
                wait.goes_on()
                continue
            stream = ready[0]
            share, result = running[stream], _result(next(stream))
            lost = isinstance(result, ProcessLost)
            if lost or len(share.jobs) == 1:
                del running[stream]
            if not lost or not share.may_repeat():
                yield share.completed(result)
            if lost and share.jobs:
                start(share)
    finally:
        for stream in running:
            ray.cancel(stream)


def _result(reference: Any) -> Any:
    """What a process has yielded, or that it was lost."""
    try:
        return result_of(reference)
    except ProcessLost as lost:
        return lost


def _measure(subject: Subject, jobs: list[Job], protocol: EvaluationProtocol, threads: int) -> Iterator[Any]:
    """The result of each task, or its `BoomError`."""
    from boom_ray.model import inference

    devices.check(protocol.device)
    models: dict[type, Any] = {}
    with inference.threads(threads):
        for task, partial in jobs:
            try:
                if type(task) not in models:
                    models[type(task)] = task.load(subject, protocol)
                result = task.run(models[type(task)], subject, protocol, partial)
            except BoomError as error:
                result = error
            yield result

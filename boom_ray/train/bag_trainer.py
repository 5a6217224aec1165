"""One bag as a trainer of Ray Train."""

import uuid
from collections.abc import Iterator
from typing import Any, cast

import ray.exceptions
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from boom_ray.errors import BoomError, ClusterError
from boom_ray.runs.layout import Layout
from boom_ray.train.bag_job import BagJob
from boom_ray.train.capacity import rank_environment, rank_resources


def fit(job: BagJob) -> BoomError | None:
    """Train and publish one bag.

    Returns:
        The reason if it failed.
    """
    execution = job.recipe.train.execution
    environment: Any = {"worker_runtime_env": rank_environment(execution)}  # mypy knows the older RunConfig
    trainer = TorchTrainer(
        cast(Any, _train_bag),
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=job.num_ranks,
            use_gpu=execution.use_gpu,
            resources_per_worker=rank_resources(execution),
        ),
        torch_config=TorchConfig(timeout_s=execution.collective_timeout_s),
        # A unique name: under an existing one Ray Train silently resumes from a snapshot that it overwrites
        # in place. Our checkpoints are either complete or invisible.
        run_config=RunConfig(
            name=f"{job.name}-{uuid.uuid4().hex[:8]}",
            storage_path=Layout(job.recipe.root).ray_train,
            failure_config=FailureConfig(max_failures=execution.max_failures),
            callbacks=[cast(Any, StopAtBoomErrors())],
            **environment,
        ),
    )
    try:
        trainer.fit()
    except (TrainingFailedError, ray.exceptions.RayError, ValueError, OSError) as error:
        cause = getattr(error, "controller_failure", error)
        return cause if isinstance(cause, BoomError) else ClusterError("; ".join(reasons(error)))
    return None


def _train_bag(config: dict[str, Any]) -> None:
    """The training function of a rank; imports transformers and DeepSpeed on the workers only."""
    from boom_ray.train.worker import train_bag

    train_bag(config)


class StopAtBoomErrors(UserCallback):
    """Ends a bag at a `BoomError` of any rank, which would occur again in every attempt.

    Ray Train counts an exception of a rank as a failure and starts the next attempt, whatever it is. An
    exception of a callback ends the trainer, and all ranks with it: none waits for others in a collective.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the first `BoomError`; Ray Train wraps what a rank has raised."""
        for wrapper in worker_exceptions.values():
            for error in (wrapper, *wrapper.args):
                if isinstance(error, BoomError):
                    raise error


def reasons(error: Exception) -> Iterator[str]:
    """The distinct errors of all failed ranks, one line each."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    yield from dict.fromkeys(map(_reason, failures.values()))


def _reason(failure: Exception) -> str:
    """The last line of a traceback, or the first line of Ray's explanation of an out-of-memory kill."""
    lines = str(failure).strip().splitlines()
    return lines[0 if isinstance(failure, ray.exceptions.OutOfMemoryError) else -1]

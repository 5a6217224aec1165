"""One bag as a trainer of Ray Train."""

import os
import uuid
from functools import partial
from typing import Any, cast

import ray.exceptions
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig
from ray.util.placement_group import PlacementGroup

from boom_ray.errors import BoomError, ClusterError, first_line
from boom_ray.recipe.execution import Elastic
from boom_ray.runs.layout import Layout
from boom_ray.runtime.cluster import ProcessLost
from boom_ray.train.attempts import StopAtBoomErrors, StopWithoutProgress, reasons
from boom_ray.train.bag_job import BagJob
from boom_ray.train.capacity import rank_environment, rank_resources
from boom_ray.train.ray_internals import Trainer

# Ray Train looks for lost nodes every 20 s: until then it may try to start more ranks than there is room for.
RESTART_SECONDS = 30


def fit(job: BagJob) -> BoomError | None:
    """Train and publish one bag.

    Returns:
        The reason if it failed.

    Raises:
        ProcessLost: if the controller of the trainer died.
    """
    try:
        _trainer(job).fit()
    except ray.exceptions.RayActorError as error:
        raise ProcessLost(first_line(error)) from error
    except (TrainingFailedError, ray.exceptions.RayError, ValueError, OSError) as error:
        cause = getattr(error, "controller_failure", error)
        return cause if isinstance(cause, BoomError) else ClusterError(reasons([error]))
    return None


def _trainer(job: BagJob) -> Trainer:
    execution = job.recipe.train.execution
    environment: Any = {"worker_runtime_env": rank_environment(execution)}  # mypy knows the older RunConfig
    callbacks = [StopAtBoomErrors(), StopWithoutProgress(job.checkpoints, execution.max_failures)]
    return Trainer(
        _train_bag,
        report=partial(_report_placement, job),
        train_loop_config={"job": job},
        scaling_config=_scaling(job),
        torch_config=TorchConfig(timeout_s=execution.collective_timeout_s),
        # A unique name: under an existing one Ray Train silently resumes from a snapshot that it overwrites
        # in place. Our checkpoints are either complete or invisible.
        run_config=RunConfig(
            name=f"{job.name}-{uuid.uuid4().hex[:8]}",
            storage_path=Layout(job.recipe.root).ray_train,
            failure_config=FailureConfig(max_failures=-1),  # the callbacks decide
            callbacks=cast(Any, callbacks),
            **environment,
        ),
    )


def _report_placement(job: BagJob, group: PlacementGroup) -> None:
    job.progress_actor.place.remote(job.name, group)


def _scaling(job: BagJob) -> ScalingConfig:
    """The ranks of a bag. Those of a range wait for each other in the trainer, not in Ray's queue."""
    execution = job.recipe.train.execution
    numbers: dict[str, Any] = {"num_workers": job.num_ranks}
    if isinstance(execution.num_workers, Elastic):
        least, most = execution.num_workers.min, execution.num_workers.max
        interval = execution.num_workers.resize_every_s
        numbers = {"num_workers": (least, most), "elastic_resize_monitor_interval_s": interval}
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(RESTART_SECONDS)
    return ScalingConfig(use_gpu=execution.use_gpu, resources_per_worker=rank_resources(execution), **numbers)


def _train_bag(config: dict[str, Any]) -> None:
    """The training function of a rank; imports transformers and DeepSpeed on the workers only."""
    from boom_ray.train.worker import train_bag

    train_bag(config)

"""Checkpoints of one bag on one rank: resume, save, and delete."""

from typing import TYPE_CHECKING

from boom_ray import storage
from boom_ray.artifacts import checkpoints
from boom_ray.artifacts.checkpoints import Saver
from boom_ray.errors import ConflictError
from boom_ray.train import engine as deepspeed_engine
from boom_ray.train.agreement import from_first_rank, new_attempt_id
from boom_ray.train.average import WeightAverage
from boom_ray.train.bag_job import BagJob
from boom_ray.train.metrics_log import MetricsLog
from boom_ray.train.training_state import TrainingState

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class BagCheckpoints:
    """Saves and restores DeepSpeed's state, the average of the weights so far, the training state and the
    metrics log. Runs on every rank."""

    def __init__(
        self,
        job: BagJob,
        engine: "DeepSpeedEngine",
        average: WeightAverage,
        log: MetricsLog,
        rank: int,
        num_ranks: int,
    ) -> None:
        self.name, self.uri, self.engine, self.log = job.name, job.checkpoints, engine, log
        self.average = average
        self.rank, self.num_ranks = rank, num_ranks
        self.zero_stage = job.recipe.train.execution.zero_stage
        self.saver = Saver(job.checkpoints, new_attempt_id(), rank, num_ranks)

    def resume(self) -> TrainingState | None:
        """Restore the newest complete checkpoint.

        Returns:
            Its training state, or None if there is no checkpoint.

        Raises:
            ConflictError: if it was saved by another number of ranks or at another ZeRO stage.
        """
        # Ranks that listed the storage at different times could choose different checkpoints.
        newest = from_first_rank(lambda: checkpoints.newest(self.uri))
        if newest is None:
            return None
        uri, values = newest
        state = TrainingState.from_checkpoint(values)
        if (state.num_ranks, state.zero_stage) != (self.num_ranks, self.zero_stage):
            raise ConflictError(
                f"{uri}: saved with num_workers {state.num_ranks} and zero_stage {state.zero_stage}, but now "
                f"num_workers is {self.num_ranks} and zero_stage is {self.zero_stage}. Use the former "
                f"values, or delete {self.uri} to train {self.name} from the start"
            )
        local = storage.local_directory(uri)
        deepspeed_engine.load_state(self.engine, local)
        self.average.load(local)
        self.log.restore_from(local)
        return state

    def save(self, state: TrainingState) -> None:
        """Save a checkpoint; it is copied to storage while training continues."""
        local = self.saver.directory()
        deepspeed_engine.save_state(self.engine, local)
        self.average.save(local)
        if self.rank == 0:
            self.log.copy_to(local)
        self.saver.store(local, state.step, state.to_checkpoint())

    def wait(self) -> None:
        """Wait until this rank's part of the last checkpoint is stored."""
        self.saver.wait()

    def delete(self) -> None:
        """Delete all checkpoints of the bag, once its model is published."""
        storage.delete_tree(self.uri)

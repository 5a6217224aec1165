"""Checkpoints of one bag on one rank: resume, save, and delete."""

from typing import TYPE_CHECKING

from boom_ray import storage
from boom_ray.artifacts import checkpoints
from boom_ray.artifacts.checkpoints import Manifest, Pieces, Saver
from boom_ray.artifacts.fragments import FragmentReader
from boom_ray.artifacts.record import METRICS_LOG
from boom_ray.model.encoder import Encoder
from boom_ray.train.agreement import (
    from_all_ranks,
    from_first_rank,
    gather_while_training,
    new_attempt_id,
    on_all_ranks,
)
from boom_ray.train.average import WeightAverage
from boom_ray.train.bag_job import BagJob
from boom_ray.train.engine_state import EngineState
from boom_ray.train.fragments import Fragment, Snapshot, fill
from boom_ray.train.metrics_log import MetricsLog
from boom_ray.train.partitions import fragments_of, update_model
from boom_ray.train.training_state import TrainingState

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

WEIGHTS = ".safetensors"


class BagCheckpoints:
    """Saves and restores all that training changes, for any number of ranks, ZeRO stage and offload.

    A rank stores the fragments of master weights and moments that it holds, the first one also the average of
    the weights so far and the metrics log; without ZeRO it stores everything. Runs on every rank.
    """

    def __init__(
        self,
        job: BagJob,
        encoder: Encoder,
        engine: "DeepSpeedEngine",
        average: WeightAverage,
        log: MetricsLog,
        rank: int,
        num_ranks: int,
    ) -> None:
        self.uri, self.encoder, self.engine = job.checkpoints, encoder, engine
        self.average, self.log = average, log
        self.rank, self.num_ranks = rank, num_ranks
        self.saver = Saver(job.checkpoints, new_attempt_id(), rank, gather_while_training())

    def resume(self) -> TrainingState | None:
        """Restore the newest complete checkpoint whose files are what was stored.

        Returns:
            Its training state, or None if there is no checkpoint.

        Raises:
            StorageError: if a checkpoint cannot be read, or is of another model.
        """
        # Ranks that listed the storage at different times could choose different checkpoints.
        for uri, manifest in from_first_rank(lambda: list(checkpoints.complete(self.uri))):
            if self._is_sound(uri, manifest):
                return self._restore(uri, manifest)
        return None

    def _is_sound(self, uri: str, manifest: Manifest) -> bool:
        """Whether all files are what was stored; each rank reads its share of them."""
        share = {name: manifest.files[name] for name in sorted(manifest.files)[self.rank :: self.num_ranks]}
        problems = from_all_ranks(lambda: checkpoints.damage(uri, share))
        found = [problem for of_rank in problems for problem in of_rank]
        if found and self.rank == 0:
            checkpoints.logger.warning("%s: damaged, not used: %s", uri, "; ".join(found))
        return not found

    def _restore(self, uri: str, manifest: Manifest) -> TrainingState:
        state = TrainingState.from_checkpoint(manifest.state)
        self.average.begin(state.step)
        files = [storage.join(uri, name) for name in manifest.files if name.endswith(WEIGHTS)]
        on_all_ranks(lambda: self._fill(files))
        EngineState.model_validate(manifest.state["engine"]).restore(self.engine)
        update_model(self.engine)
        if self.rank == 0:
            self.log.restore(storage.read_bytes(storage.join(uri, METRICS_LOG)))
        return state.model_copy(update={"num_ranks": self.num_ranks})

    def _fill(self, files: list[str]) -> None:
        with FragmentReader(files) as reader:
            fill(self._fragments(), reader)

    def _fragments(self) -> list[Fragment]:
        return fragments_of(self.engine, self.encoder.transformer) + self.average.fragments()

    def save(self, state: TrainingState) -> None:
        """Save a checkpoint: a copy in host memory is stored while training continues."""
        self.saver.wait()  # so that there is one copy at a time
        files: dict[str, Pieces] = {}
        if self.rank == 0 or self.engine.zero_optimization():  # without it, all ranks hold the same
            fragments = self._fragments()
            if fragments:
                files[f"rank-{self.rank}{WEIGHTS}"] = Snapshot(fragments)
        if self.rank == 0:
            files[METRICS_LOG] = [self.log.content()]
        engine = EngineState.of(self.engine).model_dump()
        self.saver.store(files, state.step, state.to_checkpoint() | {"engine": engine})

    def wait(self) -> None:
        """Wait until this rank's part of the last checkpoint is stored."""
        self.saver.wait()

    def delete(self) -> None:
        """Delete all checkpoints of the bag, once its model is published."""
        storage.delete_tree(self.uri)

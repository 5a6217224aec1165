"""The training loop of one rank, which Ray Train runs on every worker of a bag."""

import time
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from boom_ray.artifacts import staging
from boom_ray.model.encoder import DTYPES
from boom_ray.train import retrieval_check
from boom_ray.train.agreement import on_all_ranks
from boom_ray.train.average import WeightAverage, averaged_steps
from boom_ray.train.bag_checkpoints import BagCheckpoints
from boom_ray.train.bag_job import BagJob
from boom_ray.train.chunk_size import measured_chunk_tokens
from boom_ray.train.engine import create_engine
from boom_ray.train.export import base_weights, is_rounded, write_model
from boom_ray.train.lasting import without_retry
from boom_ray.train.master_weights import set_master_weights, trained_weights
from boom_ray.train.preemption import PreemptionNotices
from boom_ray.train.preparation import prepare
from boom_ray.train.reporter import TrainingReporter
from boom_ray.train.step_runner import StepRunner
from boom_ray.train.training_state import TrainingState


def train_bag(config: dict[str, Any]) -> None:
    """Train one bag and publish its model; runs on every rank.

    Args:
        config: `{"job": BagJob}`.

    Raises:
        BoomError: if the failure would occur again in every attempt. Any other exception makes Ray Train
            start another attempt.
    """
    job = config["job"]
    with without_retry(job.recipe.base_model.path):
        BagTraining(job).run()


class BagTraining:
    """The training of one bag on one rank."""

    def __init__(self, job: BagJob) -> None:
        context = ray.train.get_context()
        self.job, self.train = job, job.recipe.train
        self.rank, self.num_ranks = context.get_world_rank(), context.get_world_size()
        device = str(ray.train.torch.get_device())
        self.encoder, self.loader = on_all_ranks(lambda: prepare(job, device, self.rank, self.num_ranks))
        self.engine = create_engine(self.encoder, self.train, self.loader.num_steps, self.num_ranks)
        if is_rounded(job.recipe):
            set_master_weights(self.engine, self.encoder.transformer, base_weights(job.recipe))
        if self.train.execution.chunk_tokens == "auto" and self.train.execution.use_gpu:
            longest = max(self.train.query_max_length, self.train.passage_max_length)
            longest = min(longest, self.encoder.spec.max_length)
            self.loader.chunk_tokens = measured_chunk_tokens(self.encoder, longest)
        self.steps = StepRunner(job, self.encoder, self.loader, self.engine, self.rank, self.num_ranks)
        self.reporter = TrainingReporter(job, self.loader.num_steps)
        self.notices = PreemptionNotices()
        steps = averaged_steps(self.train.average, self.loader.num_steps)
        self.average = WeightAverage(self.engine, self.encoder.transformer, steps)
        self.checkpoints = BagCheckpoints(
            job, self.encoder, self.engine, self.average, self.reporter.log, self.rank, self.num_ranks
        )

    def run(self) -> None:
        """Resume or start the bag, run all remaining steps, check the model, and publish it."""
        if self.rank == 0:
            self.reporter.begin_attempt()
        state = self._train(self.checkpoints.resume() or self._initial_state())
        state = state.after_training(self._check())
        if self.rank == 0:
            self.reporter.report_check(state.check)
        self._publish(state)

    def _initial_state(self) -> TrainingState:
        return TrainingState.initial(self.num_ranks, self._check())

    def _train(self, state: TrainingState) -> TrainingState:
        started = time.monotonic()
        for step, batch in self.loader.from_step(state.step):
            metrics = self.steps.run(step, batch)
            now = time.monotonic()
            state = state.after_step(metrics.loss, metrics.tokens, now - started)
            started = now
            self.average.after_step(state.step)
            if self.rank == 0:
                self.reporter.report(state, metrics)
            is_last = state.step == self.loader.num_steps  # the model itself is published next
            if self._is_due(state.step) and not is_last:
                self.checkpoints.save(state)
        return state

    def _is_due(self, step: int) -> bool:
        """Whether to save a checkpoint, also because a node is about to be taken away. Runs on every rank."""
        has_notice = self.notices.is_new(self.steps.seconds)
        if has_notice and self.rank == 0:
            self.reporter.report_notice(step)
        return has_notice or step % self.train.execution.save_every_steps == 0

    def _check(self) -> float | None:
        """The score of the current weights in the retrieval check. Runs on every rank, as ZeRO-3 requires."""
        self.encoder.eval()
        score = retrieval_check.check(self.loader.collators, self.train.seed, self.steps.embed)
        self.encoder.train()
        return score

    def weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What is published, on rank 0: the weights of the last step, or the average. Runs on every rank."""
        if self.train.average:
            return self.average.weights(dtype)
        return trained_weights(self.engine, self.encoder.transformer, dtype)

    def _publish(self, state: TrainingState) -> None:
        """Publish the model from rank 0, then delete the checkpoints."""
        weights = self.weights(DTYPES[self.train.save_dtype])
        # The checkpoints of all ranks must be stored before rank 0 deletes them.
        self.checkpoints.wait()
        dist.barrier()
        if self.rank:
            return
        with staging.staged(self.job.target) as stage:
            self.reporter.log.copy_to(stage.local)
            write_model(self.job, self.encoder, weights, state, stage)
        self.checkpoints.delete()

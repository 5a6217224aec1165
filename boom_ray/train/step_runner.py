"""The optimizer steps of one rank: DeepSpeed's engine, the exact gradient, and the metrics of every step."""

import math
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from boom_ray.data.collate import Batch
from boom_ray.errors import InputError
from boom_ray.model.encoder import DTYPES, Encoder
from boom_ray.train import engine as deepspeed_engine
from boom_ray.train.bag_job import BagJob
from boom_ray.train.batch_loader import BatchLoader, TokenizedBatch
from boom_ray.train.loss import loss_terms
from boom_ray.train.metrics_log import StepMetrics
from boom_ray.train.share import Counts, split
from boom_ray.train.step import TrainingStep, embedder
from boom_ray.train.step_statistics import flops_per_token, mean_similarity, measure_flops

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class StepRunner:
    """Runs steps on one rank. All methods are collective: every rank calls them with the same batch.

    Attributes:
        seconds: When the last step began, by a clock that has the same value on all ranks.
    """

    def __init__(
        self,
        job: BagJob,
        encoder: Encoder,
        loader: BatchLoader,
        engine: "DeepSpeedEngine",
        rank: int,
        num_ranks: int,
    ) -> None:
        self.train = job.recipe.train
        self.encoder, self.loader, self.engine = encoder, loader, engine
        self.rank, self.num_ranks = rank, num_ranks
        self.ready, self.seconds = time.monotonic(), 0.0
        self.flops_per_token = flops_per_token(encoder.transformer)
        self.device_flops = (
            measure_flops(encoder.device, DTYPES[self.train.precision])
            if self.train.execution.use_gpu
            else None
        )
        self.step = TrainingStep(
            sum_over_ranks=dist.all_reduce,
            backward=lambda scalar, is_last: deepspeed_engine.backward(engine, scalar, is_last),
            gradient_scale=num_ranks,
        )

    def run(self, step: int, batch: TokenizedBatch) -> StepMetrics:
        """Run one optimizer step.

        Args:
            step: Number of the step, from 0.

        Raises:
            InputError: if the loss is not finite.
        """
        started = time.monotonic()
        loss, embeddings, counts = self.accumulate(batch)
        if not math.isfinite(loss):
            raise InputError(
                f"the loss became {loss} at step {step + 1}, task {batch.batch.task}, rows "
                f"{batch.rows.tolist()}. Lower train.learning_rate, or set train.precision to bf16 or fp32"
            )
        learning_rate = deepspeed_engine.learning_rate(self.engine)  # before the step advances the schedule
        grad_norm = deepspeed_engine.optimizer_step(self.engine)
        seconds = time.monotonic() - started
        return self._metrics(step, batch.batch, counts, loss, embeddings, learning_rate, grad_norm, seconds)

    def accumulate(self, batch: TokenizedBatch) -> tuple[float, Tensor, Counts]:
        """Accumulate the gradient of a global batch in the engine.

        Returns:
            Loss of the batch, its [n, d] embeddings, and its counts, equal on all ranks.
        """
        clock = round(1e3 * (time.monotonic() - self.ready))
        counts = self._counts_of_all(batch.counts._replace(clock=clock))
        self.seconds = counts.clock / 1e3
        loss, embeddings = self.step(
            embed=embedder(self.engine, self.encoder.collate, batch.tokens),
            texts=batch.texts,
            chunks=split(batch.chunks, counts.chunks),
            num_kept=counts.kept,
            num_texts=len(batch.batch.texts),
            terms=loss_terms(batch.batch, self.train, self.rank, self.num_ranks),
        )
        return loss.item(), embeddings, counts

    def _counts_of_all(self, own: Counts) -> Counts:
        counts = torch.tensor(own, device=self.encoder.device)
        everyone = [torch.empty_like(counts) for _ in range(self.num_ranks)]
        dist.all_gather(everyone, counts)
        return Counts.of_all(torch.stack(everyone).cpu().numpy())

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """[n, d] embeddings of the texts of a small batch; every rank embeds all of them."""
        tokens = self.loader.tokens(batch, np.arange(len(batch.texts)))
        embed = embedder(self.engine, self.encoder.collate, tokens)
        chunks = self.encoder.layout.chunks(tokens.lengths, self.loader.chunk_tokens)
        vectors = torch.cat([embed(chunk) for chunk in chunks])
        return vectors[torch.from_numpy(np.argsort(np.concatenate(chunks)))]

    def _metrics(
        self,
        step: int,
        batch: Batch,
        counts: Counts,
        loss: float,
        embeddings: Tensor,
        learning_rate: float,
        grad_norm: float,
        seconds: float,
    ) -> StepMetrics:
        rate = counts.tokens / seconds
        num_texts = batch.candidates.size + len(batch.queries)  # with repetitions
        return StepMetrics(
            step=step + 1,
            time=time.time(),
            task=batch.task,
            loss=loss,
            tokens=counts.tokens,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            tokens_per_second=rate,
            padding_fraction=1 - counts.tokens / counts.computed,
            truncated_fraction=counts.truncated / len(batch.texts),
            distinct_fraction=len(batch.texts) / num_texts,
            similarity=mean_similarity(embeddings),
            feed_wait=counts.waited / 1e6,
            num_ranks=self.num_ranks,
            mfu=self.device_flops and rate * self.flops_per_token / (self.num_ranks * self.device_flops),
        )

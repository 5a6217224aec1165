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
from boom_ray.train.loss import batch_loss
from boom_ray.train.metrics_log import StepMetrics
from boom_ray.train.step import Chunk, TrainingStep, embedder, share_chunks
from boom_ray.train.step_statistics import flops_per_token, mean_similarity, measure_flops

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class StepRunner:
    """Runs steps on one rank. All methods are collective: every rank calls them with the same batch."""

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
        self.flops_per_token = flops_per_token(encoder.transformer)
        self.device_flops = (
            measure_flops(encoder.device, DTYPES[self.train.precision])
            if self.train.execution.use_gpu
            else None
        )
        self.step = TrainingStep(
            sum_over_ranks=dist.all_reduce,
            backward=lambda scalar, is_last: deepspeed_engine.backward(engine, scalar, is_last),
            grad_cache=self.train.execution.grad_cache,
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
        loss, embeddings = self.accumulate(batch)
        if not math.isfinite(loss):
            raise InputError(
                f"the loss became {loss} at step {step + 1}, task {batch.batch.task}, rows "
                f"{batch.rows.tolist()}. Lower train.learning_rate, or set train.precision to bf16 or fp32"
            )
        learning_rate = deepspeed_engine.learning_rate(self.engine)  # before the step advances the schedule
        grad_norm = deepspeed_engine.optimizer_step(self.engine)
        seconds = time.monotonic() - started
        return self._metrics(step, batch, loss, embeddings, learning_rate, grad_norm, seconds)

    def accumulate(self, batch: TokenizedBatch) -> tuple[float, Tensor]:
        """Accumulate the gradient of a global batch in the engine.

        Returns:
            Loss of the batch and its [n, d] embeddings, equal on all ranks.
        """
        train = self.train
        loss, embeddings = self.step(
            embed=embedder(self.engine, self.encoder.collate, batch.tokens),
            chunks=self._chunks(batch),
            num_texts=len(batch.tokens),
            loss=lambda embeddings: batch_loss(
                embeddings, batch.batch, train.temperature, train.distillation, train.matryoshka
            ),
        )
        return loss.item(), embeddings

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """[n, d] embeddings of the texts of a small batch; every rank embeds all of them."""
        tokenized = self.loader.tokenize(batch, rows=np.empty(0))
        embed = embedder(self.engine, self.encoder.collate, tokenized.tokens)
        chunks = self._cut(tokenized.tokens.lengths)
        vectors = torch.cat([embed(chunk) for chunk in chunks])
        return vectors[torch.from_numpy(np.argsort(np.concatenate(chunks)))]

    def _chunks(self, batch: TokenizedBatch) -> list[Chunk]:
        return share_chunks(batch.tokens.lengths, self.num_ranks, self._cut)[self.rank]

    def _cut(self, lengths: np.ndarray) -> list[Chunk]:
        return self.encoder.layout.chunks(lengths, self.train.execution.chunk_tokens)

    def _metrics(
        self,
        step: int,
        batch: TokenizedBatch,
        loss: float,
        embeddings: Tensor,
        learning_rate: float,
        grad_norm: float,
        seconds: float,
    ) -> StepMetrics:
        lengths = batch.tokens.lengths
        tokens = int(lengths.sum())
        rate = tokens / seconds
        num_texts = batch.batch.candidates.size + len(batch.batch.queries)  # with repetitions
        computed = self.encoder.layout.computed_tokens(lengths, self.train.execution.chunk_tokens)
        return StepMetrics(
            step=step + 1,
            time=time.time(),
            task=batch.batch.task,
            loss=loss,
            tokens=tokens,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            tokens_per_second=rate,
            padding_fraction=1 - tokens / computed,
            truncated_fraction=float(np.mean(lengths >= self.loader.limits(batch.batch))),
            distinct_fraction=len(batch.tokens) / num_texts,
            similarity=mean_similarity(embeddings),
            mfu=self.device_flops and rate * self.flops_per_token / (self.num_ranks * self.device_flops),
        )

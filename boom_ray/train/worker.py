"""One rank's training loop: a `train_loop_per_worker` of Ray Train around `deepspeed.initialize`."""

import math
import os
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import ray.train
import ray.train.torch
import ray.util
import torch
import torch.distributed as dist
from torch import Tensor, nn

from boom_ray import artifacts, storage
from boom_ray.artifacts import ModelRecord, checkpoints, staging
from boom_ray.artifacts.checkpoints import Saver
from boom_ray.artifacts.contents import ModelConfig, ModelMetrics, TrainingConfig, TrainingMetrics
from boom_ray.errors import BoomError
from boom_ray.model import card, directory
from boom_ray.model.encoder import DTYPES, Encoder, chunk_by_tokens
from boom_ray.train import deepspeed, lora
from boom_ray.train.board import BagState
from boom_ray.train.check import check_batches, mean_reciprocal_rank
from boom_ray.train.feed import Fed, Feed
from boom_ray.train.job import BagJob
from boom_ray.train.journal import (
    Journal,
    StepMetrics,
    flops_per_token,
    mean_similarity,
    measured_flops,
    padding_fraction,
)
from boom_ray.train.loss import batch_loss
from boom_ray.train.step import Chunk, Step, embedder, share_chunks
from boom_ray.train.watch import Watch


def train_bag(config: dict[str, Any]) -> str | None:
    """Train one bag and publish its model; runs on every rank.

    Args:
        config: `{"job": BagJob}`.

    Returns:
        None, or the message of an error that every rank meets and no retry can mend.
    """
    try:
        BagTraining(config["job"]).run()
    except BoomError as error:
        return str(error)
    return None


class BagTraining:
    """The training of one bag on one rank."""

    def __init__(self, job: BagJob) -> None:
        context = ray.train.get_context()
        self.job, self.train = job, job.recipe.train
        self.rank, self.num_ranks = context.get_world_rank(), context.get_world_size()
        self.encoder, self.feed = _agreed(lambda: prepare(job))
        self.flops_per_token = flops_per_token(self.encoder.transformer)
        self.device_flops = (
            measured_flops(self.encoder.device, DTYPES[self.train.precision])
            if self.train.execution.use_gpu
            else None
        )
        self.engine = deepspeed.initialize(self.encoder, self.train, self.feed.num_steps, self.num_ranks)
        self.step = Step(
            sum_over_ranks=dist.all_reduce,
            backward=self._backward,
            grad_cache=self.train.execution.grad_cache,
            gradient_scale=self.num_ranks,
        )
        attempt = [uuid.uuid4().hex[:8]]
        dist.broadcast_object_list(attempt)
        self.saver = Saver(job.checkpoints, attempt[0], self.rank, self.num_ranks)
        self.journal = Journal({"run": job.recipe.name, "bag": job.name})
        self.watch = Watch(self.train.max_grad_norm)

    def _backward(self, scalar: Tensor, is_last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(is_last)
        self.engine.backward(scalar)

    def run(self) -> None:
        """Resume or start, run all remaining steps, check, publish."""
        if self.rank == 0:
            self.job.board.begin.remote(self.job.name)
        state = self._resume()
        since, mark = time.monotonic(), state["step"]
        for step, fed in self.feed.from_step(mark):
            metrics = self._run_step(step, fed)
            state |= {
                "step": step + 1,
                "loss": metrics.loss,
                "tokens": state["tokens"] + metrics.tokens,
            }
            state["seconds"] += time.monotonic() - since
            since = time.monotonic()
            self._tell(state, metrics)
            if state["step"] % self.train.execution.save_every_steps == 0 and step + 1 < self.feed.num_steps:
                self._save(state)
        self._check_trained(state)
        self._publish(state)

    def accumulate(self, fed: Fed) -> tuple[float, Tensor]:
        """Put the gradient of a global batch into the engine.

        Returns:
            Its loss and its [n, d] embeddings, the same on every rank.
        """
        value, embeddings = self.step(
            embed=embedder(self.engine, self.encoder.pad, fed.token_ids),
            chunks=self._chunks(fed),
            num_texts=len(fed.token_ids),
            loss=lambda embeddings: batch_loss(
                embeddings, fed.batch, self.train.temperature, self.train.distillation, self.train.matryoshka
            ),
        )
        return value.item(), embeddings

    def _chunks(self, fed: Fed) -> list[Chunk]:
        return share_chunks(fed.lengths, self.num_ranks, self.train.execution.chunk_tokens)[self.rank]

    def _run_step(self, step: int, fed: Fed) -> StepMetrics:
        started = time.monotonic()
        loss, embeddings = self.accumulate(fed)
        if not math.isfinite(loss):
            raise BoomError(
                f"{self.job.name}: the loss became {loss} at step {step + 1}, on task {fed.batch.task}, rows "
                f"{fed.rows.tolist()}. Lower train.learning_rate, or use train.precision bf16 or fp32"
            )
        learning_rate = self.engine.get_lr()[0]
        grad_norm = deepspeed.optimizer_step(self.engine)
        tokens = int(fed.lengths.sum())
        pace = tokens / (time.monotonic() - started)
        named = fed.batch.candidates.size + len(fed.batch.queries)
        return StepMetrics(
            step=step + 1,
            time=time.time(),
            task=fed.batch.task,
            loss=loss,
            tokens=tokens,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            tokens_per_second=pace,
            padding_fraction=0.0 if self.encoder.packed else padding_fraction(fed.lengths, self._chunks(fed)),
            truncated_fraction=float(np.mean(fed.lengths >= self.feed.limits(fed.batch))),
            distinct_fraction=len(fed.token_ids) / named,
            similarity=mean_similarity(embeddings),
            mfu=self.device_flops and pace * self.flops_per_token / (self.num_ranks * self.device_flops),
        )

    def _tell(self, state: dict[str, Any], metrics: StepMetrics) -> None:
        if self.rank:
            return
        self.journal.add(metrics)
        step, num_steps = state["step"], self.feed.num_steps
        said = BagState(
            step=step,
            num_steps=num_steps,
            loss=metrics.loss,
            tokens_per_second=state["tokens"] / state["seconds"],
            seconds_left=state["seconds"] / step * (num_steps - step),
        )
        self.job.board.tell.remote(self.job.name, said)
        for text in self.watch.warnings(metrics.loss, metrics.grad_norm, metrics.similarity):
            self.job.board.warn.remote(self.job.name, text)

    def _check(self) -> float | None:
        """Mean reciprocal rank on a few rows, see `boom_ray.train.check`. Runs on every rank, for ZeRO-3."""
        self.encoder.eval()
        ranks = []
        for batch in check_batches(self.feed.collators, self.train.seed):
            fed = self.feed.tokenized(batch, np.empty(0))
            embed = embedder(self.engine, self.encoder.pad, fed.token_ids)
            with torch.no_grad():
                chunks = chunk_by_tokens(fed.lengths, self.train.execution.chunk_tokens)
                vectors = torch.cat([embed(chunk) for chunk in chunks])
            order = torch.from_numpy(np.argsort(np.concatenate(chunks)))
            ranks.append(mean_reciprocal_rank(vectors[order], batch))
        self.encoder.train()
        return float(np.mean(ranks)) if ranks else None

    def _check_trained(self, state: dict[str, Any]) -> None:
        before, after = state["check"]["before"], self._check()
        state["check"]["after"] = after
        if self.rank == 0 and before is not None and after is not None and after < 0.99 * before:
            self.job.board.warn.remote(
                self.job.name,
                f"it finds right answers worse than its base: mean reciprocal rank {before:.3f} before, "
                f"{after:.3f} after. Try a lower train.learning_rate, and look at the rows of its tasks",
            )

    def _resume(self) -> dict[str, Any]:
        """Restore the newest complete checkpoint; rank 0 chooses, so that all ranks take the same one."""
        chosen: list[Any] = [
            _agreed(lambda: checkpoints.newest(self.job.checkpoints) if self.rank == 0 else None)
        ]
        dist.broadcast_object_list(chosen)
        if chosen[0] is None:
            check = {"before": self._check()}
            start = {"step": 0, "loss": math.nan, "tokens": 0, "seconds": 0.0, "started": time.time()}
            return {**start, "check": check, **self._shape()}
        uri, state = chosen[0]
        if {key: state[key] for key in self._shape()} != self._shape():
            raise BoomError(
                f"{uri}: saved by {state['num_ranks']} ranks at ZeRO stage {state['zero_stage']}, now "
                f"{self.num_ranks} ranks at stage {self.train.execution.zero_stage}. Use the same, or delete "
                f"{self.job.checkpoints} to train {self.job.name} from the start"
            )
        local = storage.local_directory(uri)
        deepspeed.load_state(self.engine, local)
        self.journal.read_from(local)
        return state

    def _shape(self) -> dict[str, int]:
        return {"num_ranks": self.num_ranks, "zero_stage": self.train.execution.zero_stage}

    def _save(self, state: dict[str, Any]) -> None:
        local = self.saver.directory()
        deepspeed.save_state(self.engine, local)
        if self.rank == 0:
            self.journal.write_to(local)
        self.saver.store(local, state["step"], dict(state))

    def _publish(self, state: dict[str, Any]) -> None:
        """Publish the model from rank 0; the checkpoints have served."""
        weights = deepspeed.full_weights(self.engine, self.encoder.transformer)
        self.saver.wait()
        dist.barrier()
        if self.rank:
            return
        if self.train.lora:
            weights = lora.fold(weights, self.train.lora)
        with staging.staged(self.job.target) as stage:
            self.journal.write_to(stage.local)
            write_model(self.job, self.encoder, weights, state, stage)
        storage.delete_tree(self.job.checkpoints)


T = TypeVar("T")


def _agreed(prepare: Callable[[], T]) -> T:
    """Run something on every rank; the error of one is raised on all, so that none waits for another."""
    problem: str | None = None
    try:
        result = prepare()
    except BoomError as error:
        problem = str(error)
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    if any(problems):
        raise BoomError(next(filter(None, problems)))
    return result


def prepare(job: BagJob) -> tuple[Encoder, Feed]:
    """What a rank needs before training.

    Raises:
        BoomError: if this node cannot see the storage or the base model.
    """
    if artifacts.read_record(job.corpus) is None:
        raise BoomError(
            f"{job.recipe.storage}: node {ray.util.get_node_ip_address()} does not see what the driver "
            "stored there. Give a storage that all nodes share: a network file system, or s3://"
        )
    encoder = load_for_training(job, storage.local_directory(job.recipe.base_model.path))
    return encoder, Feed(job, encoder)


def load_for_training(job: BagJob, base: str) -> Encoder:
    """The base model, ready to be trained: without dropout, and with nothing trainable that the loss cannot
    reach.

    Dropout is off because a step's gradient must not depend on how its batch is cut.
    """
    train = job.recipe.train
    encoder = directory.load_encoder(
        base,
        job.recipe.base_model,
        dtype=DTYPES[train.precision],
        device=str(ray.train.torch.get_device()),
        attention=train.execution.attention,
    ).train()
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 - an attribute, not a sub-module
    for name, parameter in encoder.transformer.named_parameters():
        parameter.requires_grad_(not name.startswith("pooler."))
    if train.lora:
        torch.manual_seed(train.seed)
        lora.attach(encoder.transformer, train.lora)
    if train.execution.gradient_checkpointing:
        encoder.transformer.gradient_checkpointing_enable({"use_reentrant": False})
    return encoder


def write_model(
    job: BagJob,
    encoder: Encoder,
    weights: dict[str, Tensor],
    state: dict[str, Any],
    stage: staging.Stage,
) -> ModelRecord:
    """Fill a stage with the trained model and commit it."""
    recipe = job.recipe
    base = storage.local_directory(recipe.base_model.path)
    prompts = directory.prompts_of(recipe.data)
    max_length = recipe.base_model.max_length or min(
        encoder.spec.max_length, max(recipe.train.query_max_length, recipe.train.passage_max_length)
    )
    directory.save(encoder, stage.local, base, prompts, max_length, weights, recipe.train.matryoshka)
    record = ModelRecord(
        name=recipe.name,
        version=job.name,
        fingerprint=job.fingerprint,
        config=ModelConfig(
            rows=job.rows,
            training=TrainingConfig(ratio=recipe.bags.ratios[job.index], settings=recipe.train),
        ),
        seed=recipe.train.seed,
        parents=job.parents,
        metrics=ModelMetrics(
            training=TrainingMetrics(**{key: state[key] for key in TrainingMetrics.model_fields})
        ),
        times={"train": (state["started"], time.time())},
        job=job.submission_id,
    )
    dimension = encoder.transformer.config.hidden_size
    text = card.render(record, directory.read_spec(stage.local), dimension, directory.license_of(base))
    with open(os.path.join(stage.local, "README.md"), "w", encoding="utf-8") as file:
        file.write(text)
    return stage.commit(record)

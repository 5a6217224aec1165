"""One rank's training loop: a `train_loop_per_worker` of Ray Train around `deepspeed.initialize`."""

import math
import os
import tempfile
import time
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from boom_ray import artifact, storage
from boom_ray.artifact import Record
from boom_ray.errors import BoomError
from boom_ray.model import card, directory
from boom_ray.model.encoder import DTYPES, Encoder
from boom_ray.recipe import identity
from boom_ray.train import checkpoint, deepspeed
from boom_ray.train.feed import Fed, Feed
from boom_ray.train.job import BagJob
from boom_ray.train.loss import contrastive_loss
from boom_ray.train.step import Step, embedder, share_chunks


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
        self.base = storage.local_directory(job.recipe.base_model.path)
        self.encoder = load_for_training(job, self.base)
        self.feed = Feed(job, self.encoder)
        self.engine = deepspeed.initialize(self.encoder, self.train, self.feed.num_steps, self.num_ranks)
        self.step = Step(
            sum_over_ranks=dist.all_reduce,
            backward=self._backward,
            grad_cache=self.train.execution.grad_cache,
            gradient_scale=self.num_ranks,
        )

    def _backward(self, scalar: Tensor, is_last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(is_last)
        self.engine.backward(scalar)

    def run(self) -> None:
        """Resume or start, run all remaining steps, publish."""
        state = self._resume()
        for step, fed in self.feed.from_step(state["step"]):
            started = time.monotonic()
            state["loss"] = self._run_step(step, fed)
            state["step"] = step + 1
            state["tokens"] += int(fed.lengths.sum())
            state["seconds"] += time.monotonic() - started
            self._tell(state)
            if (
                state["step"] % self.train.execution.save_every_steps == 0
                and state["step"] < self.feed.num_steps
            ):
                self._save(state)
        self._publish(state)

    def accumulate(self, fed: Fed) -> float:
        """Put the gradient of a global batch into the engine; returns its loss, the same on every rank."""
        chunks = share_chunks(fed.lengths, self.num_ranks, self.train.execution.chunk_tokens)[self.rank]
        value, _ = self.step(
            embed=embedder(self.engine, self.encoder.pad, fed.token_ids),
            chunks=chunks,
            num_texts=len(fed.token_ids),
            loss=lambda embeddings: contrastive_loss(embeddings, fed.batch, self.train.temperature),
        )
        return value.item()

    def _run_step(self, step: int, fed: Fed) -> float:
        loss = self.accumulate(fed)
        if not math.isfinite(loss):
            raise BoomError(
                f"{self.job.name}: the loss became {loss} at step {step + 1}, on task {fed.batch.task}, rows "
                f"{fed.rows.tolist()}. Lower train.learning_rate, or use train.precision bf16 or fp32"
            )
        self.engine.step()
        return loss

    def _tell(self, state: dict[str, Any]) -> None:
        if self.rank:
            return
        rate = state["tokens"] / state["seconds"]
        note = f"loss {state['loss']:.4f}  {rate:,.0f} tokens/s"
        self.job.board.tell.remote(self.job.name, state["step"], self.feed.num_steps, note)

    def _resume(self) -> dict[str, Any]:
        """Restore the newest complete checkpoint; rank 0 chooses, so that all ranks take the same one."""
        chosen: list[Any] = [checkpoint.newest(self.job.checkpoints) if self.rank == 0 else None]
        dist.broadcast_object_list(chosen)
        if chosen[0] is None:
            return {"step": 0, "loss": math.nan, "tokens": 0, "seconds": 0.0, **self._shape()}
        uri, state = chosen[0]
        if {key: state[key] for key in self._shape()} != self._shape():
            raise BoomError(
                f"{uri}: saved by {state['num_ranks']} ranks at ZeRO stage {state['zero_stage']}, now "
                f"{self.num_ranks} ranks at stage {self.train.execution.zero_stage}. Use the same, or delete "
                f"{self.job.checkpoints} to train {self.job.name} from the start"
            )
        deepspeed.load_state(self.engine, storage.local_directory(uri))
        return state

    def _shape(self) -> dict[str, int]:
        return {"num_ranks": self.num_ranks, "zero_stage": self.train.execution.zero_stage}

    def _save(self, state: dict[str, Any]) -> None:
        uri = checkpoint.location(self.job.checkpoints, state["step"])
        if self.rank == 0:
            storage.delete_tree(uri)
        dist.barrier()
        if storage.is_local(uri):
            deepspeed.save_state(self.engine, uri)
        else:
            with tempfile.TemporaryDirectory(prefix="boom-ray-checkpoint-") as local:
                deepspeed.save_state(self.engine, local)
                storage.copy_tree(local, uri)
        dist.barrier()
        if self.rank == 0:
            checkpoint.seal(uri, state)
            checkpoint.prune(self.job.checkpoints)

    def _publish(self, state: dict[str, Any]) -> None:
        """Publish the model from rank 0; the checkpoints have served."""
        weights = deepspeed.full_weights(self.engine, self.encoder.transformer)
        if self.rank:
            return
        with artifact.staged(self.job.target) as stage:
            write_model(self.job, self.encoder, self.base, weights, state, stage)
        storage.delete_tree(self.job.checkpoints)


def load_for_training(job: BagJob, base: str) -> Encoder:
    """The base model, ready to be trained: without dropout, and with nothing trainable that the loss cannot
    reach.

    Dropout is off because a step's gradient must not depend on how its batch is cut.
    """
    train = job.recipe.train
    torch.manual_seed(train.seed)
    device = str(ray.train.torch.get_device())
    encoder = directory.load_encoder(
        base, job.recipe.base_model, dtype=DTYPES[train.precision], device=device
    ).train()
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 - an attribute, not a sub-module
    for name, parameter in encoder.transformer.named_parameters():
        parameter.requires_grad_(not name.startswith("pooler."))
    if train.execution.gradient_checkpointing:
        encoder.transformer.gradient_checkpointing_enable({"use_reentrant": False})
    return encoder


def write_model(
    job: BagJob,
    encoder: Encoder,
    base: str,
    weights: dict[str, Tensor],
    state: dict[str, Any],
    stage: artifact.Stage,
) -> Record:
    """Fill a stage with the trained model and commit it."""
    recipe = job.recipe
    prompts = directory.prompts_of(recipe.data)
    max_length = recipe.base_model.max_length or min(
        encoder.spec.max_length, max(recipe.train.query_max_length, recipe.train.passage_max_length)
    )
    directory.save(encoder, stage.local, base, prompts, max_length, weights)
    record = Record(
        kind="model",
        name=recipe.name,
        version=job.name,
        fingerprint=job.fingerprint,
        config={"rows": job.rows, "ratio": recipe.bags.ratios[job.index], **identity(recipe.train)},
        seed=recipe.train.seed,
        parents=job.parents,
        metrics={key: state[key] for key in ("step", "loss", "tokens", "seconds")},
    )
    dimension = encoder.transformer.config.hidden_size
    text = card.render(record, directory.read_spec(stage.local), dimension, directory.license_of(base))
    with open(os.path.join(stage.local, "README.md"), "w", encoding="utf-8") as file:
        file.write(text)
    return stage.commit(record)

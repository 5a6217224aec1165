"""The cost of one optimizer step of a bag: compute, network and optimizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from boom_ray.planner import memory
from boom_ray.planner.hardware import ClusterSpec, RankSpec
from boom_ray.planner.shape import ModelShape
from boom_ray.planner.texts import BatchLoad
from boom_ray.recipe import Train

ADAMW_WORDS = 7  # float32 words read and written per parameter: master weight, two moments, gradient


@dataclass(frozen=True)
class StepCost:
    """One optimizer step of one bag.

    Attributes:
        flops: FLOPs of all ranks.
        sent: Bytes that one rank sends.
        compute: Seconds of compute.
        network: Seconds of collectives; overlap with compute is not assumed.
        optimizer: Seconds of AdamW.
    """

    flops: float
    sent: float
    compute: float
    network: float
    optimizer: float

    @property
    def seconds(self) -> float:
        """Total seconds."""
        return self.compute + self.network + self.optimizer


def mean_load(loads: Mapping[str, BatchLoad], num_batches: Mapping[str, int]) -> BatchLoad:
    """The mean global batch of a bag; each task counts with its number of batches."""
    total = sum(num_batches.values())

    def mean(key: str) -> float:
        return sum(num_batches[task] * getattr(loads[task], key) for task in num_batches) / total

    computed = mean("computed")
    squares = sum(count * loads[task].computed * loads[task].length for task, count in num_batches.items())
    measured = all(loads[task].measured for task in num_batches)
    length = squares / total / computed
    return BatchLoad(mean("texts"), mean("tokens"), computed, length, mean("row_bytes"), measured)


def model_flops(shape: ModelShape, load: BatchLoad) -> float:
    """FLOPs of the forward and backward pass of a batch without padding: the numerator of MFU."""
    backward = 1 if shape.adapters else 2
    return (1 + backward) * shape.forward_flops(load.tokens, load.length)


def chunks_of(train: Train, load: BatchLoad, num_ranks: int) -> int:
    """Chunks that a rank cuts its part of a batch into."""
    return max(1, ceil(load.computed / num_ranks / memory.chunk_tokens(train)))


def computed_flops(shape: ModelShape, train: Train, load: BatchLoad, num_ranks: int) -> float:
    """FLOPs of all passes over a batch, padding included.

    A backward pass costs two forward passes, or one if the weights are frozen. Activation checkpointing adds
    one forward pass, GradCache (arXiv 2101.06983) one of all chunks but one.
    """
    backward = 1 if shape.adapters else 2
    repeated = 1 - 1 / chunks_of(train, load, num_ranks)
    passes = 1 + backward + train.execution.gradient_checkpointing + repeated
    return passes * shape.forward_flops(load.computed, load.length)


def sent_bytes(shape: ModelShape, train: Train, load: BatchLoad, num_ranks: int) -> float:
    """Bytes that a rank sends in one step: gradients, weights, and the embeddings of the batch with their
    gradient.

    ZeRO stages 0 and 1 send each gradient twice, for reduce-scatter and all-gather (arXiv 1910.02054, §7).
    Stages 2 and 3 reduce the gradient of every chunk. Stage 3 gathers the weights for every forward and
    backward pass of every chunk.
    """
    if num_ranks == 1:
        return 0.0
    execution, element, stage = train.execution, memory.element_bytes(train), train.execution.zero_stage
    num_chunks, gradients = chunks_of(train, load, num_ranks), element * shape.trained
    sent = 2 * gradients if stage < 2 else gradients * (num_chunks + (stage == 2))
    if stage == 3:
        # The first chunk is embedded once, the others twice; each has a backward pass.
        num_passes = 2 * num_chunks - 1 + num_chunks * (1 + execution.gradient_checkpointing)
        sent += num_passes * element * (shape.parameters + shape.adapters)
    sent += 2 * 2 * 4 * load.texts * shape.hidden
    return sent * (num_ranks - 1) / num_ranks


def step(
    shape: ModelShape, train: Train, load: BatchLoad, num_ranks: int, cluster: ClusterSpec, rank: RankSpec
) -> StepCost:
    """The cost of one step of a bag on `num_ranks` ranks."""
    flops = computed_flops(shape, train, load, num_ranks)
    sent = sent_bytes(shape, train, load, num_ranks)
    updated = shape.trained / (num_ranks if train.execution.zero_stage else 1)
    bandwidth = rank.link if cluster.nodes_of(num_ranks) == 1 else min(rank.link, rank.network)
    return StepCost(
        flops=flops,
        sent=sent,
        compute=flops / num_ranks / rank.flops,
        network=sent / bandwidth,
        optimizer=4 * ADAMW_WORDS * updated / rank.memory_bandwidth,
    )

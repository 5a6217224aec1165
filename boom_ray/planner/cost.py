"""What one optimizer step of a bag takes: arithmetic, the network, and the optimizer's memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from boom_ray.planner import memory
from boom_ray.planner.hardware import Cluster, Rank
from boom_ray.planner.shape import Shape
from boom_ray.planner.texts import Load
from boom_ray.recipe import Train

ADAMW_WORDS = 7  # float32 numbers read and written for each weight: master, both moments, gradient


@dataclass(frozen=True)
class Step:
    """One optimizer step of one bag.

    Attributes:
        flops: Of all ranks.
        sent: Bytes that one rank sends.
        compute: Seconds of arithmetic.
        network: Seconds of collectives; none is assumed to be hidden behind arithmetic.
        optimizer: Seconds of AdamW.
    """

    flops: float
    sent: float
    compute: float
    network: float
    optimizer: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compute + self.network + self.optimizer


def mean_load(loads: Mapping[str, Load], batches: Mapping[str, int]) -> Load:
    """The mean global batch of a bag, each task's counted as often as it has batches."""
    total = sum(batches.values())

    def mean(key: str) -> float:
        return sum(batches[task] * getattr(loads[task], key) for task in batches) / total

    computed = mean("computed")
    squares = sum(count * loads[task].computed * loads[task].length for task, count in batches.items())
    measured = all(loads[task].measured for task in batches)
    length = squares / total / computed
    return Load(mean("texts"), mean("tokens"), computed, length, mean("row_bytes"), measured)


def model_flops(shape: Shape, load: Load) -> float:
    """Of forward and backward pass of a batch's tokens without padding: what MFU is measured by."""
    backward = 1 if shape.adapters else 2
    return (1 + backward) * shape.forward_flops(load.tokens, load.length)


def computed_flops(shape: Shape, train: Train, load: Load) -> float:
    """Of all passes over a batch, padding included.

    The backward pass takes two forward passes, or one where the weights are frozen; checkpointing takes one
    more forward pass, and GradCache (arXiv 2101.06983) another.
    """
    execution, backward = train.execution, 1 if shape.adapters else 2
    passes = 1 + backward + execution.gradient_checkpointing + execution.grad_cache
    return passes * shape.forward_flops(load.computed, load.length)


def sent_bytes(shape: Shape, train: Train, load: Load, num_ranks: int) -> float:
    """Bytes that a rank sends in one step: gradients, weights, and the embeddings of the batch.

    Stages 0 to 2 send each gradient twice, once to sum and once to spread (ZeRO, arXiv 1910.02054, §7);
    stage 3 gathers the weights for every forward and backward pass of every chunk.
    """
    if num_ranks == 1:
        return 0.0
    execution, element, stage = train.execution, memory.element_bytes(train), train.execution.zero_stage
    chunks = max(1, ceil(load.computed / num_ranks / execution.chunk_tokens))
    backwards = chunks if execution.grad_cache else 1
    gradients = element * shape.trained
    sent = 2 * gradients if stage < 2 else gradients * (backwards + (stage == 2))
    if stage == 3:
        gathers = 2 + execution.gradient_checkpointing + execution.grad_cache
        sent += chunks * gathers * element * (shape.parameters + shape.adapters)
    sent += 2 * 4 * load.texts * shape.hidden
    return sent * (num_ranks - 1) / num_ranks


def step(shape: Shape, train: Train, load: Load, num_ranks: int, cluster: Cluster, rank: Rank) -> Step:
    """The cost of one step of a bag on so many ranks."""
    flops, sent = computed_flops(shape, train, load), sent_bytes(shape, train, load, num_ranks)
    own = shape.trained / (num_ranks if train.execution.zero_stage else 1)
    pipe = rank.link if cluster.nodes_of(num_ranks) == 1 else min(rank.link, rank.network)
    return Step(
        flops=flops,
        sent=sent,
        compute=flops / num_ranks / rank.flops,
        network=sent / pipe,
        optimizer=4 * ADAMW_WORDS * own / rank.bandwidth,
    )

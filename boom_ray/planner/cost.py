"""The cost of one optimizer step of a bag: arithmetic, kernel launches, network, feed and optimizer."""

from dataclasses import astuple, dataclass
from typing import NamedTuple

from boom_ray.planner import memory
from boom_ray.planner.hardware import ClusterSpec, RankSpec
from boom_ray.planner.passes import RankPasses, SampledBatch, StepPasses, Work, layout_of, step_passes
from boom_ray.planner.shape import ModelShape
from boom_ray.planner.texts import BatchMix
from boom_ray.recipe import Train

ADAMW_WORDS = 7  # float32 words read and written per parameter: master weight, two moments, gradient
OPERATIONS = 50  # of torch in the forward pass of a layer of Qwen3, views not counted; a layer of BERT has 12


@dataclass(frozen=True)
class StepCost:
    """One optimizer step of one bag.

    Attributes:
        flops: FLOPs of all ranks.
        sent: Bytes that one rank sends.
        compute: Seconds of arithmetic on the slowest rank.
        launches: Seconds in which the host launches the operations of the passes.
        feed: Seconds in which the host collates and tokenizes the next batch.
        overlapped: Seconds of collectives while passes run.
        exposed: Seconds of collectives that passes, or the optimizer, wait for.
        optimizer: Seconds of AdamW.
        seconds: Total seconds: the longest of what runs at the same time, and what runs after it.
    """

    flops: float
    sent: float
    compute: float
    launches: float
    feed: float
    overlapped: float
    exposed: float
    optimizer: float
    seconds: float

    @property
    def network(self) -> float:
        """Seconds of all collectives."""
        return self.overlapped + self.exposed


class Sent(NamedTuple):
    """Bytes that a rank sends in one step.

    Attributes:
        overlapped: While passes run.
        exposed: While passes or the optimizer wait.
    """

    overlapped: float
    exposed: float


def model_flops(shape: ModelShape, batches: BatchMix) -> float:
    """FLOPs of the forward and backward pass of the mean batch without padding: the numerator of MFU."""
    backward = 1 if shape.adapters else 2
    return (1 + backward) * batches.mean(
        lambda batch: _forward(shape, Work(batch.lengths.sum(), (batch.lengths**2).sum()))
    )


def computed_flops(shape: ModelShape, train: Train, own: RankPasses) -> float:
    """FLOPs of all passes of a rank in a step, padding included.

    A backward pass costs two forward passes, or one if the weights are frozen. Activation checkpointing adds
    one forward pass, GradCache (arXiv 2101.06983) one of the chunks whose activations are not kept.
    """
    backward = 1 if shape.adapters else 2
    passes = 1 + backward + train.execution.gradient_checkpointing
    return passes * _forward(shape, own.all) + _forward(shape, own.repeated)


def _forward(shape: ModelShape, work: Work) -> float:
    return shape.forward_flops(work.tokens, work.squares / work.tokens) if work.tokens else 0.0


def num_operations(shape: ModelShape, train: Train, passes: StepPasses) -> float:
    """Operations that the host launches in a step; a backward pass has twice those of a forward pass."""
    forward = passes.num_chunks + passes.num_repeated
    backward = passes.num_chunks * (2 + train.execution.gradient_checkpointing)
    return (forward + backward) * shape.layers * OPERATIONS


def sent_bytes(shape: ModelShape, train: Train, num_texts: int, passes: StepPasses, num_ranks: int) -> Sent:
    """Bytes that a rank sends in one step: gradients, weights, and the embeddings of the batch with their
    gradient.

    DeepSpeed sums gradients over all ranks (twice their size) up to ZeRO 2, although a rank needs only its
    part; ZeRO 1 and 2 gather the updated weights. ZeRO 3 reduces and scatters gradients, and gathers the
    weights in every forward and backward pass of every chunk. From ZeRO 2 on, each backward pass sends its
    gradients: one of all chunks that are kept, and one of each other chunk.

    On GPUs, ZeRO 2 and 3 send during all passes, ZeRO 1 during the last one; in bf16 ZeRO 1 is
    `BF16_Optimizer`, which sends after it.
    """
    if num_ranks == 1:
        return Sent(0.0, 0.0)
    execution, element, stage = train.execution, memory.element_bytes(train), train.execution.zero_stage
    gradients = element * shape.trained
    during, after = 0.0, gradients * (stage in (1, 2)) + 2 * 2 * 4 * num_texts * shape.hidden
    if stage == 3:
        num_gathers = passes.num_repeated + passes.num_chunks * (2 + execution.gradient_checkpointing)
        during = num_gathers * element * (shape.parameters + shape.adapters)
        during += gradients * (1 + passes.num_repeated)
    else:
        during = 2 * gradients * (1 + passes.num_repeated * (stage == 2))
    reduces_at_the_end = stage == 1 and train.precision == "bf16" and execution.offload == "none"
    if reduces_at_the_end or stage == 0 or not execution.use_gpu:
        during, after = 0.0, during + after
    others = (num_ranks - 1) / num_ranks
    return Sent(others * during, others * after)


def bandwidth_of(num_ranks: int, cluster: ClusterSpec, rank: RankSpec) -> float:
    """Bytes per second between the ranks of a bag."""
    return rank.link if cluster.nodes_of(num_ranks) == 1 else min(rank.link, rank.network)


def step(
    shape: ModelShape, train: Train, batches: BatchMix, num_ranks: int, cluster: ClusterSpec, rank: RankSpec
) -> StepCost:
    """The cost of the mean step of a bag on `num_ranks` ranks."""
    costs = [
        [share * value for value in astuple(_of_batch(shape, train, batch, num_ranks, cluster, rank))]
        for share, batch in batches.shares
    ]
    return StepCost(*map(sum, zip(*costs, strict=True)))


def _of_batch(
    shape: ModelShape,
    train: Train,
    batch: SampledBatch,
    num_ranks: int,
    cluster: ClusterSpec,
    rank: RankSpec,
) -> StepCost:
    passes = step_passes(batch, layout_of(train), memory.chunk_tokens(train), num_ranks)
    flops = [computed_flops(shape, train, own) for own in passes.ranks]
    sent = sent_bytes(shape, train, len(batch.lengths), passes, num_ranks)
    overlapped, exposed = (size / bandwidth_of(num_ranks, cluster, rank) for size in sent)
    updated = shape.trained / (num_ranks if train.execution.zero_stage else 1)
    optimizer = 4 * ADAMW_WORDS * updated / rank.memory_bandwidth
    compute, launches = max(flops) / rank.flops, rank.launch * num_operations(shape, train, passes)
    feed = rank.collate * len(batch.lengths) + max(own.size for own in passes.ranks) / rank.tokenize
    return StepCost(
        flops=sum(flops) / len(flops) * num_ranks,
        sent=sum(sent),
        compute=compute,
        launches=launches,
        feed=feed,
        overlapped=overlapped,
        exposed=exposed,
        optimizer=optimizer,
        # A thread prepares the next batch during the whole step.
        seconds=max(feed, max(compute, launches, overlapped) + exposed + optimizer),
    )

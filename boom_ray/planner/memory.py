"""Memory of one rank in bytes: model states by ZeRO stage, activations, and buffers.

Model states follow Rajbhandari et al. (ZeRO, arXiv 1910.02054, §3 and figure 1). Activations follow
Korthikanti et al. (arXiv 2205.05198, §4.1) without dropout and without attention scores, which fused kernels
do not store, generalized to gated layers and grouped-query attention.
"""

from dataclasses import astuple, dataclass

from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.shape import ModelShape
from boom_ray.recipe import Train
from boom_ray.train.buffers import (
    CHUNK_TOKENS_ON_CPU,
    LEAST_CHUNK_TOKENS,
    MAX_LOGITS,
    MOST_CHUNK_TOKENS,
    REDUCE_BUCKET,
    USED_MEMORY,
)

BUCKET = 5e8  # elements: DeepSpeed's buckets, except those of ZeRO 2
LIVE = 1e9  # elements that ZeRO-3 keeps gathered: DeepSpeed's stage3_max_live_parameters
ADAM_WORDS = 2  # float32 words per parameter in addition to its master weight
ZERO_STAGES = range(4)


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank.

    Attributes:
        states: Weights, gradients and optimizer states.
        buffers: DeepSpeed's buckets for gathering and reducing.
        activations: Activations of the largest forward pass that a backward pass follows.
        loss: Embeddings of the global batch and their scores.
        overhead: CUDA context and libraries.
        copies: What the host of the first rank holds besides, if that is the same memory; see `host_bytes`.
    """

    states: float
    buffers: float
    activations: float
    loss: float
    overhead: float
    copies: float

    @property
    def total(self) -> float:
        """Total bytes."""
        return sum(astuple(self))


@dataclass(frozen=True)
class MemoryTable:
    """Memory of a rank by batch size and ZeRO stage, when all texts have their maximum length.

    Attributes:
        available: Bytes that a rank has.
        num_ranks: Ranks of the bag.
        by_batch_size: For each batch size the memory at ZeRO stages 0 to 3.
        recipe: Memory with the settings of the recipe.
        largest_chunk: Tokens of the largest chunk that fits.
        host: Bytes in host memory for the first rank, in addition to its processor's.
    """

    available: float
    num_ranks: int
    by_batch_size: dict[int, list[RankMemory]]
    recipe: RankMemory
    largest_chunk: float
    host: float


def table(
    shape: ModelShape, train: Train, num_ranks: int, available: float, assume: Assumptions, saves: bool
) -> MemoryTable:
    """Memory with the recipe's settings, and with half, twice and four times its batch size.

    Args:
        available: Bytes that a rank has.
        saves: Whether the bag is long enough for checkpoints.
    """
    own, stage = as_set(shape, train, num_ranks, assume, saves), train.execution.zero_stage
    batch_sizes = sorted({max(2, train.batch_size // 2), *(train.batch_size * n for n in (1, 2, 4))})
    return MemoryTable(
        available=available,
        num_ranks=num_ranks,
        by_batch_size={
            size: [on_rank(shape, train, num_ranks, each, size, assume, saves) for each in ZERO_STAGES]
            for size in batch_sizes
        },
        recipe=own,
        largest_chunk=largest_chunk(own, shape, train, available),
        host=host_bytes(shape, train, num_ranks, stage, saves) if train.execution.use_gpu else 0.0,
    )


def with_chunk_tokens(
    train: Train, shape: ModelShape, num_ranks: int, available: float, assume: Assumptions
) -> Train:
    """The settings with a number for `chunk_tokens: auto`, as training measures it on GPUs.

    Args:
        available: Bytes that a rank has.
    """
    execution = train.execution
    if execution.chunk_tokens != "auto":
        return train
    tokens = CHUNK_TOKENS_ON_CPU
    if execution.use_gpu:
        own = as_set(shape, _with(train, LEAST_CHUNK_TOKENS), num_ranks, assume)
        fitting = int(USED_MEMORY * largest_chunk(own, shape, train, available))
        tokens = min(max(fitting, LEAST_CHUNK_TOKENS), MOST_CHUNK_TOKENS)
    return _with(train, tokens)


def _with(train: Train, chunk_tokens: int) -> Train:
    execution = train.execution.model_copy(update={"chunk_tokens": chunk_tokens})
    return train.model_copy(update={"execution": execution})


def chunk_tokens(train: Train) -> int:
    """Most tokens of a chunk; for `auto`, before a number is found, those of CPUs."""
    chosen = train.execution.chunk_tokens
    return CHUNK_TOKENS_ON_CPU if chosen == "auto" else chosen


def element_bytes(train: Train) -> int:
    """Bytes of one weight in the precision of the forward pass."""
    return 4 if train.precision == "fp32" else 2


def states(shape: ModelShape, train: Train, num_ranks: int, stage: int) -> float:
    """Bytes of weights, gradients and optimizer states on one rank's processor.

    Mixed precision takes 2 + 4 + 12 bytes per trained parameter: gradients accumulate in float32. Stage 1
    partitions the optimizer states over the ranks, stage 2 also the gradients, stage 3 also the weights.
    """
    element, trained = element_bytes(train), shape.trained
    parameters = shape.parameters + shape.adapters
    words = ADAM_WORDS if train.precision == "fp32" else ADAM_WORDS + 1
    offload = train.execution.offload
    optimizer = 0.0 if offload != "none" and stage else 4 * words * trained
    weights = 0.0 if offload == "all" and stage == 3 else element * parameters
    parts = [(weights, 3), (4 * trained, 2), (optimizer, 1)]
    return sum(size / (num_ranks if stage >= least else 1) for size, least in parts)


def checkpoint_bytes(shape: ModelShape, train: Train) -> float:
    """Bytes of a bag's checkpoint: master weights and moments of what is trained, and the average of weights,
    if there is one; independent of the number of ranks and of the precision."""
    return 4 * (1 + ADAM_WORDS) * shape.trained + average_bytes(shape, train)


def checkpoint_share(shape: ModelShape, train: Train, num_ranks: int, stage: int) -> float:
    """Bytes that the first rank stores of a checkpoint: its fragments, and the average of weights."""
    average = average_bytes(shape, train)
    return (checkpoint_bytes(shape, train) - average) / (num_ranks if stage else 1) + average


def host_bytes(shape: ModelShape, train: Train, num_ranks: int, stage: int, saves: bool) -> float:
    """Bytes in host memory for the first rank: the average of weights, and the copy of its part of a
    checkpoint while that is stored, and what is offloaded."""
    on_device = train.execution.model_copy(update={"offload": "none"})
    kept = train.model_copy(update={"execution": on_device})
    offloaded = states(shape, kept, num_ranks, stage) - states(shape, train, num_ranks, stage)
    copied = checkpoint_share(shape, train, num_ranks, stage) if saves else 0.0
    return average_bytes(shape, train) + copied + offloaded


def average_bytes(shape: ModelShape, train: Train) -> float:
    """Bytes of the average of weights that the first rank keeps on its host; 0 without `train.average`."""
    return 4 * shape.trained if train.average else 0.0


def layer_bytes(shape: ModelShape, element: int) -> float:
    """Bytes that one layer stores per token for the backward pass.

    Stored are the inputs of both norms, of attention and of the feed-forward layer (4 hidden); queries, keys,
    values and the output of attention; and the intermediate states of the feed-forward layer. RMS norms
    compute in float32 and store the normalized input; in half precision also a float32 copy of the input.
    For BERT's shape without dropout the sum is 32 x hidden bytes in half precision: the 34 of the paper
    without dropout masks.
    """
    intermediate = (4 if shape.gated else 2) * shape.intermediate
    stored = 4 * shape.hidden + 2 * shape.attention + 2 * shape.key_value + intermediate
    normalized = shape.rms_width * (element + (4 if element < 4 else 0))
    return element * stored + normalized


def activation_bytes(shape: ModelShape, tokens: float, element: int, checkpointing: bool) -> float:
    """Bytes of activations of `tokens`; with checkpointing each layer's input and all of one layer."""
    layer = layer_bytes(shape, element)
    if checkpointing:
        return tokens * (shape.layers * element * shape.hidden + layer)
    return tokens * shape.layers * layer


def on_rank(
    shape: ModelShape,
    train: Train,
    num_ranks: int,
    stage: int,
    batch_size: int,
    assume: Assumptions,
    saves: bool = False,
) -> RankMemory:
    """Memory of one rank when all texts of a global batch have their maximum length.

    Args:
        saves: Whether the bag is long enough for checkpoints.
    """
    element, execution = element_bytes(train), train.execution
    most = batch_size * (train.query_max_length + train.group_size * train.passage_max_length) / num_ranks
    tokens = min(most, chunk_tokens(train))
    buffers = buffer_bytes(shape, train, stage) if num_ranks > 1 else 0.0
    libraries = 3e9 if execution.use_gpu else 0.6e9
    overhead = assume.take("memory.overhead", libraries, "B", "CUDA context, NCCL, workspaces; a guess")
    activations = activation_bytes(shape, tokens, element, execution.gradient_checkpointing)
    factor = assume.take("memory.activation_factor", 1.15, "", "fragmentation of the allocator, a guess")
    return RankMemory(
        states=states(shape, train, num_ranks, stage),
        buffers=buffers,
        activations=factor * activations,
        loss=loss_bytes(shape, train.group_size, batch_size, num_ranks),
        overhead=overhead,
        copies=0.0 if execution.use_gpu else host_bytes(shape, train, num_ranks, stage, saves),
    )


def as_set(
    shape: ModelShape, train: Train, num_ranks: int, assume: Assumptions, saves: bool = False
) -> RankMemory:
    """Memory of one rank with the recipe's ZeRO stage and batch size."""
    return on_rank(shape, train, num_ranks, train.execution.zero_stage, train.batch_size, assume, saves)


def buffer_bytes(shape: ModelShape, train: Train, stage: int) -> float:
    """Bytes of DeepSpeed's buckets.

    ZeRO 1 copies a bucket of float32 gradients, and once more in the precision of the weights. ZeRO 2 fills
    one bucket while it reduces another, ZeRO 3 gathers weights as well.
    """
    element, bucket = element_bytes(train), min(BUCKET, shape.trained)
    if stage == 1:
        return (4 + element) * bucket
    if stage == 2:
        return 2 * element * min(REDUCE_BUCKET, shape.trained)
    return element * (bucket + min(LIVE, shape.parameters)) if stage == 3 else 0.0


def loss_bytes(shape: ModelShape, group_size: int, batch_size: int, num_ranks: int) -> float:
    """Bytes of the loss: embeddings of the batch, of its candidates, and their gradients; and of one term the
    logits, masked, as probabilities, and their gradient."""
    candidates = batch_size * group_size
    logits = min(-(-batch_size // num_ranks) * candidates, MAX_LOGITS)
    return 4 * (4 * (batch_size + candidates) * shape.hidden + 4 * logits)


def largest_chunk(memory: RankMemory, shape: ModelShape, train: Train, available: float) -> float:
    """Tokens of the largest chunk whose activations fit in `available` bytes with the rest; 0 if none."""
    execution = train.execution
    per_token = activation_bytes(shape, 1, element_bytes(train), execution.gradient_checkpointing)
    return max(0.0, (available - (memory.total - memory.activations)) / per_token)

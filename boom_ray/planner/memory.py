"""Bytes of memory that one rank needs: states of the model by ZeRO stage, activations, and buffers.

States are those of Rajbhandari et al. (ZeRO, arXiv 1910.02054, §3 and figure 1), activations those of
Korthikanti et al. (arXiv 2205.05198, §4.1) without dropout and without the scores of attention, which fused
kernels do not keep, and generalized to gated layers and grouped keys.
"""

from dataclasses import dataclass

from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.shape import Shape
from boom_ray.recipe import Train

BUCKET = 5e8  # elements: DeepSpeed's reduce_bucket_size and allgather_bucket_size
LIVE = 1e9  # elements that ZeRO-3 holds gathered at a time: stage3_max_live_parameters
ADAM_WORDS = 2  # float32 numbers of each weight beside its master copy


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank.

    Attributes:
        states: Weights, gradients and optimizer.
        buffers: What DeepSpeed gathers and reduces in.
        activations: Of the largest forward pass whose activations are kept.
        loss: Embeddings of the global batch, and its scores.
        overhead: Of the libraries.
    """

    states: float
    buffers: float
    activations: float
    loss: float
    overhead: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.states + self.buffers + self.activations + self.loss + self.overhead


def element_bytes(train: Train) -> int:
    """Of one weight as it is computed with."""
    return 4 if train.precision == "fp32" else 2


def states(shape: Shape, train: Train, num_ranks: int, stage: int) -> float:
    """Bytes of weights, gradients and optimizer on one rank's processor.

    With mixed precision 2 + 2 + 12 for each weight that is trained; stages 1, 2 and 3 share out the
    optimizer, the gradients, and the weights.
    """
    element, trained = element_bytes(train), shape.trained
    held = shape.parameters + shape.adapters
    words = ADAM_WORDS if train.precision == "fp32" else ADAM_WORDS + 1
    offload = train.execution.offload
    optimizer = 0.0 if offload != "none" and stage else 4 * words * trained
    weights = 0.0 if offload == "all" and stage == 3 else element * held
    parts = [(weights, 3), (element * trained, 2), (optimizer, 1)]
    return sum(size / (num_ranks if stage >= least else 1) for size, least in parts)


def checkpoint_bytes(shape: Shape, train: Train) -> float:
    """Of a bag's training state in storage: weights and optimizer, whatever the number of ranks."""
    return states(shape, train, 1, 0) - element_bytes(train) * shape.trained


def layer_bytes(shape: Shape, element: int) -> float:
    """Bytes that one layer keeps of each token for the backward pass.

    Inputs of the two norms, of attention and of the feed-forward layer (4 hidden); queries, keys, values and
    the result of attention; what is between the matrices of the feed-forward layer. RMS norms compute in
    float32 and keep a copy of their input if it is shorter, and what they normalized. For BERT's shape
    without dropout that is 32 x hidden bytes in half precision: the 34 of the source without the masks.
    """
    between = (4 if shape.gated else 2) * shape.intermediate
    kept = 4 * shape.hidden + 2 * shape.attention + 2 * shape.key_value + between
    normalized = shape.rms_width * (element + (4 if element < 4 else 0))
    return element * kept + normalized


def activation_bytes(shape: Shape, tokens: float, element: int, checkpointing: bool) -> float:
    """Bytes kept of so many tokens; with checkpointing each layer's input, and all of one layer."""
    whole = layer_bytes(shape, element)
    if checkpointing:
        return tokens * (shape.layers * element * shape.hidden + whole)
    return tokens * shape.layers * whole


def on_rank(
    shape: Shape, train: Train, num_ranks: int, stage: int, batch_size: int, assume: Assumptions
) -> Memory:
    """What one rank needs when all texts of a global batch fill their maximum length."""
    element, execution = element_bytes(train), train.execution
    at_most = batch_size * (train.query_max_length + train.group_size * train.passage_max_length) / num_ranks
    tokens = min(at_most, execution.chunk_tokens) if execution.grad_cache else at_most
    bucket = element * min(BUCKET, shape.trained)
    gathered = element * min(LIVE, shape.parameters)
    buffers = {0: 0.0, 1: 2 * bucket, 2: 2 * bucket, 3: bucket + gathered}[stage] if num_ranks > 1 else 0.0
    candidates = batch_size * train.group_size
    loss = 4 * (2 * (batch_size + candidates) * shape.hidden + 3 * batch_size * candidates)
    libraries = 3e9 if execution.use_gpu else 0.6e9
    overhead = assume.take("memory.overhead", libraries, "B", "CUDA context, NCCL, workspaces; a guess")
    activations = activation_bytes(shape, tokens, element, execution.gradient_checkpointing)
    factor = assume.take("memory.activation_factor", 1.15, "", "fragmentation of the allocator, a guess")
    return Memory(states(shape, train, num_ranks, stage), buffers, factor * activations, loss, overhead)


def largest_chunk(memory: Memory, shape: Shape, train: Train, available: float) -> float:
    """Tokens of the largest chunk that fits beside everything else; 0 if nothing does."""
    execution = train.execution
    each = activation_bytes(shape, 1, element_bytes(train), execution.gradient_checkpointing)
    return max(0.0, (available - (memory.total - memory.activations)) / each)

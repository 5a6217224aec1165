"""The `execution` sections of a recipe: how stages run, which changes results by rounding only."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from boom_ray.recipe.fields import Section, Text

Attention = Literal["auto", "varlen", "flash_attention_2", "sdpa", "eager"]


class Elastic(Section):
    """Ranks of a bag on machines that come and go: as many as there are, within limits.

    Attributes:
        min: Ranks without which the bag waits.
        max: Most ranks; more than `train.batch_size` have no query.
        resize_every_s: Seconds from a start of the ranks until it may be repeated with further ranks.
    """

    min: int = Field(ge=1)
    max: int = Field(ge=1)
    resize_every_s: float = Field(60.0, gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> "Elastic":
        if self.min > self.max:
            raise ValueError(f"got min {self.min} and max {self.max}; min is at most max")
        return self


class TrainExecution(Section):
    """How a bag is trained; none of it changes the weights beyond rounding.

    Attributes:
        num_workers: Ranks per bag; `auto` divides the cluster so that the last bag ends soonest.
            `{min: 8, max: 64}` are as many as there are at any time.
        resources_per_worker: Ray resources of one rank, e.g. `{CPU: 4, GPU: 1}`.
        zero_stage: DeepSpeed ZeRO stage.
        offload: What DeepSpeed keeps in host memory.
        attention: Implementation of attention; `varlen` and `flash_attention_2` pack texts instead of padding
            them. `auto` is varlen on GPUs in half precision if the model allows it, else sdpa, else eager.
        chunk_tokens: Tokens, padding included, whose activations a rank keeps, and most of one forward pass;
            further chunks are computed twice (GradCache). `auto` is what the memory of a GPU allows, and a
            fixed number on CPUs.
        deterministic: Use deterministic kernels, so that a GPU computes the same weights again.
        save_every_steps: Steps between checkpoints.
        max_failures: Attempts of a bag in a row that may fail without storing a later checkpoint.
        start_timeout_s: Seconds to wait until the cluster has capacity for one bag.
        collective_timeout_s: Seconds after which a silent rank ends the bag's attempt.
    """

    num_workers: Annotated[int, Field(ge=1)] | Literal["auto"] | Elastic = 1
    use_gpu: bool = False
    resources_per_worker: dict[Text, float] = Field(default_factory=dict)
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: Literal["none", "optimizer", "all"] = "none"
    attention: Attention = "auto"
    chunk_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    gradient_checkpointing: bool = False
    deterministic: bool = False
    save_every_steps: int = Field(200, ge=1)
    max_failures: int = Field(3, ge=0)
    start_timeout_s: float = Field(600.0, gt=0)
    collective_timeout_s: int = Field(600, ge=1)

    @property
    def fewest_workers(self) -> int:
        """Ranks without which a bag does not start."""
        if self.num_workers == "auto":
            return 1
        return self.num_workers.min if isinstance(self.num_workers, Elastic) else self.num_workers

    @model_validator(mode="after")
    def _ranks_are_counted_exactly(self) -> "TrainExecution":
        # Ray Train divides the resources of a node by those of a rank, in floating point.
        inexact = [key for key, amount in self.resources_per_worker.items() if amount * 64 % 1]
        if inexact and isinstance(self.num_workers, Elastic):
            raise ValueError(
                f"resources_per_worker: got {self.resources_per_worker}; with a range of num_workers, "
                f"allowed are whole numbers, halves, quarters, …, down to 1/64: change {', '.join(inexact)}"
            )
        return self

    @model_validator(mode="after")
    def _offload_fits(self) -> "TrainExecution":
        if self.offload != "none" and self.zero_stage < (3 if self.offload == "all" else 1):
            least = "zero_stage 3" if self.offload == "all" else "zero_stage 1 or more"
            raise ValueError(f"offload {self.offload!r} needs {least}")
        return self

    @model_validator(mode="after")
    def _can_be_repeated(self) -> "TrainExecution":
        if self.deterministic and self.use_gpu and self.chunk_tokens == "auto":
            raise ValueError(
                "deterministic needs a number for chunk_tokens: auto follows the free memory, and other "
                "chunks round otherwise"
            )
        return self


class MergeExecution(Section):
    """How the merge runs; none of it changes the weights.

    Attributes:
        num_workers: Worker actors; each has one CPU.
        memory_bytes: Anonymous memory of one worker.
        max_shard_bytes: Size limit of an output file; a single tensor may exceed it.
        start_timeout_s: Seconds to wait until the cluster has capacity for one worker.
    """

    num_workers: int = Field(1, ge=1)
    memory_bytes: int = Field(1 << 30, ge=1 << 29)
    max_shard_bytes: int = Field(4 << 30, ge=1)
    start_timeout_s: float = Field(600.0, gt=0)


class EvaluateExecution(Section):
    """How models are measured; none of it changes the scores beyond rounding.

    Attributes:
        use_gpu: Measure in bfloat16 on GPUs, instead of float32 on CPUs.
        resources_per_model: Ray resources of a model while it is measured, e.g. `{CPU: 4, GPU: 1}`; `CPU` is
            also its number of threads, by default those of the cluster divided by the models.
        start_timeout_s: Seconds to wait until the cluster has capacity for one model.
    """

    use_gpu: bool = False
    resources_per_model: dict[Text, float] = Field(default_factory=dict)
    start_timeout_s: float = Field(600.0, gt=0)

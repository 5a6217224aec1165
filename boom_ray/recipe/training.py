"""The settings of one bag's fine-tuning."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from boom_ray.recipe.execution import Elastic, TrainExecution
from boom_ray.recipe.fields import SaveDtype, Section, Text

Precision = Literal["fp32", "bf16", "fp16"]
Distillation = Literal["kl_div", "m3_kd"]


class Lora(Section):
    """Low-rank adapters (arXiv 2106.09685), trained and published in place of the whole weights.

    Attributes:
        targets: Names of the linear layers that get an adapter, or `all-linear`.
    """

    rank: int = Field(32, ge=1)
    alpha: float = Field(32.0, gt=0)
    targets: list[Text] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )


class Average(Section):
    """A mean of the weights at several steps of a bag, published in place of those of the last step.

    Attributes:
        last: Number of steps whose weights count the same (arXiv 1803.05407).
        decay: Instead of `last`: share of each step in proportion to that of the next one.
        every_steps: Distance of the steps, counted back from the last one.
    """

    last: int | None = Field(None, ge=2)
    decay: float | None = Field(None, gt=0, lt=1)
    every_steps: int = Field(ge=1)

    @model_validator(mode="after")
    def _one_form(self) -> "Average":
        if (self.last is None) == (self.decay is None):
            raise ValueError(f"got last {self.last} and decay {self.decay}; set one of the two")
        return self


class Train(Section):
    """The fine-tuning of one bag: InfoNCE, AdamW, linear warm-up and linear decay.

    Attributes:
        batch_size: Queries per optimizer step, over all ranks.
        group_size: Passages per query: one positive and `group_size - 1` negatives.
        distillation: Loss on rows with teacher scores (`boom_ray.train.loss`).
        matryoshka: Dimensions to which embeddings can be truncated.
        lora: Train adapters instead of all weights.
        max_steps: End earlier than `epochs` would.
        save_dtype: Type of the trained weights as they are published; in another than float32, differences
            to the base model that are smaller than its rounding are lost.
        average: Publish a mean of the weights at several steps.
    """

    epochs: int = Field(1, ge=1)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(256, ge=2)
    group_size: int = Field(8, ge=2)
    temperature: float = Field(0.02, gt=0)
    distillation: Distillation | None = None
    matryoshka: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    lora: Lora | None = None
    learning_rate: float = Field(5e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    query_max_length: int = Field(512, ge=8)
    passage_max_length: int = Field(512, ge=8)
    precision: Precision = "bf16"
    save_dtype: SaveDtype = "float32"
    average: Average | None = None
    seed: int = 42
    execution: TrainExecution = TrainExecution()

    @model_serializer(mode="wrap")
    def _without_default_average(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # `average` is newer than published recipes: a None in the identity would change their fingerprints.
        values: dict[str, Any] = serialize(self)
        if self.average is None:
            values.pop("average", None)
        return values

    @model_validator(mode="after")
    def _gradients_fit(self) -> "Train":
        if self.precision != "fp32" and self.execution.zero_stage == 0:
            raise ValueError(
                f"execution.zero_stage 0 would sum the gradients of chunks in {self.precision}; allowed: "
                "zero_stage 1, 2 or 3, which sum them in fp32, or precision fp32"
            )
        return self

    @model_validator(mode="after")
    def _every_rank_has_a_query(self) -> "Train":
        num_workers = self.execution.num_workers
        if isinstance(num_workers, Elastic) and num_workers.max > self.batch_size:
            raise ValueError(
                f"execution.num_workers: got max {num_workers.max}; allowed is at most one rank per query "
                f"of a batch, and batch_size is {self.batch_size}"
            )
        return self

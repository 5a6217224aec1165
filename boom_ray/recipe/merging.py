"""The settings of a merge."""

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from boom_ray.recipe.execution import MergeExecution
from boom_ray.recipe.fields import Density, SaveDtype, Section, Text

#: The names of all merge methods; `boom_ray.merge` registers one implementation for each.
MergeMethod = Literal[
    "linear",
    "multislerp",
    "karcher",
    "slerp",
    "nuslerp",
    "task_arithmetic",
    "model_stock",
    "ties",
    "dare_linear",
]


class Merge(Section):
    """How M models become one: the only type of merge settings, from the recipe to the workers.

    Attributes:
        method: A registered merge method; `boom_ray/merge/README.md` describes them.
        space: Merge task vectors (differences to the base model), or the weights themselves (the paper's
            formula).
        weights: `equal`, `size` (rows of training data of each model), one number per model, or such a list
            for each group of layers.
        scale: Factor on the merged task vector: 0 is the base model, 1 the merge; it may exceed 1. `auto`
            chooses it on the tasks in `evaluate.development`.
        iterations: Steps of `karcher`; 1 is the paper's formula.
        density: Fraction of each task vector that is kept (`ties`, `dare_linear`); one number, or one per
            model.
        seed: Seed of the random choice of `dare_linear`.
        normalize: Whether to divide the merged sum by the sum of the weights; None for the method's default.
        adapter_rank: Merge adapters into one of at most this rank, instead of a model with all weights.
        dtype: Floating-point type of the merged model's tensors, in which the merge rounds once.
    """

    method: MergeMethod = "multislerp"
    space: Literal["deltas", "weights"] = "deltas"
    weights: Literal["equal", "size"] | list[float] | dict[Text, list[float]] = "equal"
    scale: float | Literal["auto"] = 1.0
    iterations: int = Field(10, ge=1)
    density: Density = 0.5
    seed: int = 0
    normalize: bool | None = None
    adapter_rank: int | None = Field(None, ge=1)
    dtype: SaveDtype = "bfloat16"
    execution: MergeExecution = MergeExecution()

    @model_validator(mode="after")
    def _scales_a_task_vector(self) -> "Merge":
        if self.scale != 1 and self.space == "weights":
            raise ValueError(
                f"scale: got {self.scale}, a factor on task vectors, of which space weights has none; "
                "allowed: 1, or space deltas with a base model"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_newer_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # These are newer than published recipes: a default in the identity would change their fingerprints.
        values: dict[str, Any] = serialize(self)
        for key in ("normalize", "adapter_rank"):
            if getattr(self, key) is None:
                values.pop(key, None)
        if self.scale == 1:
            values.pop("scale_from", None)
        return values

    @property
    def factor(self) -> float:
        """The scale, once it is a number."""
        assert self.scale != "auto", "chosen before the merge: see boom_ray.pipeline.merge_choice"
        return self.scale

    @property
    def origin(self) -> int | None:
        """Index of the model that is scale 0; None for the base model."""
        return None

    def densities(self, num_models: int) -> list[float]:
        """The density of each of `num_models` models."""
        return list(self.density) if isinstance(self.density, list) else [self.density] * num_models


class UpdateMerge(Merge):
    """The merge of an update with its parent, the first model: scale 0 is the parent instead of the base."""

    scale: float = 1.0
    scale_from: Literal["parent"] = "parent"

    @property
    def origin(self) -> int | None:
        """See `Merge.origin`."""
        return 0

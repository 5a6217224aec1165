"""The bags: samples of the corpus, and settings of their own."""

from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from boom_ray.recipe.fields import Section
from boom_ray.recipe.training import Lora

#: The bag sets of the paper (arXiv 2602.05787, §4), by the name it gives them; percentages of every task.
PRESETS: dict[str, tuple[list[float], bool]] = {
    "{20,40,60,80,100}": ([20, 40, 60, 80, 100], False),
    "{80,100}": ([80, 100], False),
    "{60,60,60}": ([60, 60, 60], False),
    "{50}-and-rest": ([50, 50], True),
}
#: Settings of a bag that can be null, as in `train`: no limit, no adapters.
MAY_BE_NULL = {"max_steps", "lora"}


class Bag(Section):
    """One bag: its sample of the tasks, and settings that replace those of the recipe's `train`.

    In a recipe, a bag without settings of its own is a number, its ratio.

    Attributes:
        ratio: Percentage of every task.
        tasks: Percentages of single tasks by name, instead of `ratio`; 0 leaves a task out.
        lora: As in `train`; null to train all weights where the recipe trains adapters.
        max_steps: As in `train`; null for no limit where the recipe has one.
    """

    ratio: float = Field(gt=0, le=100)
    tasks: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(default_factory=dict)
    epochs: int | None = Field(None, ge=1)
    max_steps: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, gt=0)
    lora: Lora | None = None
    learning_rate: float | None = Field(None, gt=0)
    seed: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _number(cls, values: Any) -> Any:
        return values if isinstance(values, dict | Bag) else {"ratio": values}

    @model_validator(mode="after")
    def _has_values(self) -> "Bag":
        for key in sorted(self.model_fields_set - MAY_BE_NULL):
            if getattr(self, key) is None:
                raise ValueError(f"{key} has no value; leave it out for that of the recipe")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, serialize: SerializerFunctionWrapHandler) -> float | dict[str, Any]:
        # A bag without settings of its own stays a number: fingerprints of published recipes depend on it.
        values: dict[str, Any] = serialize(self)
        own = {key: values.get(key) for key in type(self).model_fields if key in self.model_fields_set}
        return self.ratio if self.is_plain else own

    def ratio_of(self, task: str) -> float:
        """Percentage of a task."""
        return self.tasks.get(task, self.ratio)

    @property
    def training(self) -> dict[str, Any]:
        """The settings of `train` that the bag has of its own, by key."""
        keys = [key for key in type(self).model_fields if key not in ("ratio", "tasks")]
        return {key: getattr(self, key) for key in keys if key in self.model_fields_set}

    @property
    def is_plain(self) -> bool:
        """Whether the bag is a number in a recipe, without settings of its own."""
        return not self.tasks and not self.training

    @property
    def sample(self) -> "Bag":
        """The bag without settings of training: all that its rows depend on."""
        return Bag(ratio=self.ratio, tasks=self.tasks)

    def describe(self) -> str:
        """The bag in words: `60 % of every task, 20 % of web, learning_rate 6e-05`."""
        parts = [f"{self.ratio:g} % of every task"]
        parts += [f"{ratio:g} % of {task}" for task, ratio in self.tasks.items()]
        parts += [f"{key} {_in_words(value)}" for key, value in self.training.items()]
        return ", ".join(parts)


def _in_words(value: Any) -> str:
    if isinstance(value, Lora):
        return f"of rank {value.rank}"
    return "none" if value is None else f"{value:g}"


class Bags(Section):
    """The bags: percentages of every task, sampled without replacement.

    Attributes:
        ratios: One entry per bag, a percentage or a `Bag`; or the name of one of `PRESETS`.
        partition: Make the bags disjoint instead of independent of each other.
    """

    ratios: list[Bag] = Field(min_length=1)
    partition: bool = False
    seed: int = 42

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("ratios"), str):
            if values["ratios"] not in PRESETS:
                raise ValueError(
                    f"ratios: no preset {values['ratios']!r}; allowed: {', '.join(PRESETS)}, or a list"
                )
            ratios, partition = PRESETS[values["ratios"]]
            return {**values, "ratios": ratios, "partition": partition}
        return values

    @model_validator(mode="after")
    def _fits(self) -> "Bags":
        if not self.partition:
            return self
        wholes = {"the corpus": sum(bag.ratio for bag in self.ratios)}
        named = sorted({task for bag in self.ratios for task in bag.tasks})
        wholes |= {f"task {task}": sum(bag.ratio_of(task) for bag in self.ratios) for task in named}
        for name, whole in wholes.items():
            if whole > 100:
                raise ValueError(f"disjoint bags cannot hold {whole:g} % of {name}; lower the ratios")
        return self

    @property
    def samples(self) -> "Bags":
        """The bags without settings of training: all that their rows depend on."""
        return self.model_copy(update={"ratios": [bag.sample for bag in self.ratios]})

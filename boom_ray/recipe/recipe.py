"""The recipe: one YAML file with the settings of a run.

Every setting that changes the weights is part of a recipe's identity. Settings of where and how it runs are
in the `execution` sections, in `storage` and in paths, and never enter a fingerprint.
"""

import difflib
import os
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from boom_ray import storage
from boom_ray.errors import InputError
from boom_ray.recipe import reading
from boom_ray.recipe.bags import PRESETS, Bag, Bags
from boom_ray.recipe.execution import EvaluateExecution
from boom_ray.recipe.fields import Name, Section, Uri
from boom_ray.recipe.merging import Merge
from boom_ray.recipe.sources import BaseModelSource, Data
from boom_ray.recipe.training import Train
from boom_ray.storage import absolute


class Evaluate(Section):
    """The tasks that models are measured on.

    Attributes:
        data: A directory of local tasks, grouped by the folders they are in; None to measure nothing.
        development: A directory of local tasks that settings are chosen on; it shares no query with `data`.
        max_length: Tokens after which texts are truncated; each model's own limit by default.
    """

    data: Uri | None = None
    development: Uri | None = None
    max_length: int | None = Field(None, ge=8)
    execution: EvaluateExecution = EvaluateExecution()


class Recipe(Section):
    """A run: the base model, the corpus, and how its models are trained, merged and evaluated.

    Relative paths are resolved when the recipe is validated: those in a file relative to the file, those in
    Python relative to the working directory.

    Attributes:
        name: Name of the run; `<storage>/<name>` holds everything it makes.
        storage: A local directory or `s3://bucket/prefix`.

    Example:
        >>> recipe = Recipe.load("recipe.yaml", storage="s3://bucket/runs")
        >>> recipe = Recipe(name="week-1", base_model="hf://owner/name", data={"tasks": [...]})
    """

    name: Name
    storage: Uri = Field("~/boom-ray", validate_default=True)
    base_model: Annotated[
        BaseModelSource, BeforeValidator(lambda value: {"path": value} if isinstance(value, str) else value)
    ]
    data: Data
    bags: Bags = Bags(ratios=[Bag(ratio=ratio) for ratio in PRESETS["{20,40,60,80,100}"][0]])
    train: Train = Train()
    merge: Merge = Merge()
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def _one_number_per_bag(self) -> "Recipe":
        num_bags = len(self.bags.ratios)
        weights = self.merge.weights
        by_group = [("weights", values) for values in weights.values()] if isinstance(weights, dict) else []
        for key, values in (("weights", weights), ("density", self.merge.density), *by_group):
            if isinstance(values, list) and len(values) != num_bags:
                noun = "weights" if key == "weights" else "densities"
                raise ValueError(
                    f"merge.{key}: got {len(values)} {noun} for {num_bags} bags; give one per bag"
                )
        return self

    @model_validator(mode="after")
    def _merges_adapters_into_one(self) -> "Recipe":
        trains = [self.train, *map(self.train_of, range(len(self.bags.ratios)))]
        if self.merge.adapter_rank and (
            not all(train.lora for train in trains) or self.merge.space == "weights"
        ):
            raise ValueError(
                "merge.adapter_rank: only task vectors of adapters can be merged into an adapter; set "
                "train.lora, in no bag to null, and merge.space deltas, or leave adapter_rank out"
            )
        return self

    @model_validator(mode="after")
    def _averages_weights(self) -> "Recipe":
        trains = [self.train, *map(self.train_of, range(len(self.bags.ratios)))]
        if self.train.average and any(train.lora for train in trains):
            raise ValueError(
                "train.average: the mean of an adapter's factors is not that of their products; leave out "
                "average, or lora in `train` and in all bags"
            )
        return self

    @model_validator(mode="after")
    def _bags_of_known_tasks(self) -> "Recipe":
        names = [task.name for task in self.data.tasks]
        for index, bag in enumerate(self.bags.ratios):
            for name in sorted(bag.tasks.keys() - set(names)):
                nearest = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"allowed: {', '.join(names)}"
                raise ValueError(f"bags.ratios.{index}.tasks: no task {name!r}; {hint}")
            if not any(map(bag.ratio_of, names)):
                raise ValueError(f"bags.ratios.{index}.tasks: 0 % of every task; a bag holds one or more")
        return self

    @model_validator(mode="after")
    def _chooses_on_development_tasks(self) -> "Recipe":
        if self.merge.scale == "auto" and self.evaluate.development is None:
            raise ValueError(
                "merge.scale: auto is chosen on development tasks; set evaluate.development, or give a number"
            )
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str], storage: str | None = None) -> "Recipe":
        """Read and check a recipe.

        `${NAME}` is replaced by an environment variable.

        Args:
            path: The YAML file.
            storage: Overrides the recipe's `storage`; relative to the working directory.

        Raises:
            NotFoundError: if the file does not exist.
            InputError: listing every problem, with the nearest allowed key for a key that is unknown.
        """
        path = os.fspath(path)
        values = reading.read(path)
        if not isinstance(values, dict):
            raise InputError(f"{path}: a recipe is a mapping of sections: {', '.join(cls.model_fields)}")
        if storage is not None:
            values["storage"] = absolute(storage)
        context = {"directory": os.path.dirname(os.path.abspath(path))}
        try:
            return cls.model_validate(reading.expand(values, path), context=context)
        except ValidationError as error:
            raise InputError.of(reading.explain(error, cls), f"{path}: not a valid recipe:") from None

    def train_of(self, index: int) -> Train:
        """The settings of one bag's training: those of the recipe, replaced by the bag's own."""
        return self.train.model_copy(update=self.bags.ratios[index].training)

    @property
    def root(self) -> str:
        """URI of the run: everything this recipe makes is stored below it."""
        return storage.join(self.storage, self.name)


def identity(section: Section) -> dict[str, Any]:
    """The settings of a section that change the weights: all except `execution` and `path`."""
    return section.model_dump(mode="json", exclude={"execution", "path"})

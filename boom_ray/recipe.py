"""The recipe: one YAML file with the settings of a run.

Every setting that changes the weights is part of a recipe's identity. Settings of where and how it runs are
in the `execution` sections, in `storage` and in paths, and never enter a fingerprint.
"""

import difflib
import os
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from boom_ray import recipe_file, storage
from boom_ray.errors import InputError
from boom_ray.recipe_execution import EvaluateExecution, MergeExecution, TrainExecution
from boom_ray.recipe_fields import Density, DocumentTemplate, Name, QueryTemplate, Section, Text, Uri
from boom_ray.storage import absolute

TaskType = Literal["retrieval", "sts", "classification", "clustering"]
#: Types whose rows have their own negatives only, because other rows share their label.
OWN_NEGATIVES: frozenset[TaskType] = frozenset({"classification", "clustering"})
Pooling = Literal["mean", "cls", "lasttoken"]
Precision = Literal["fp32", "bf16", "fp16"]
Distillation = Literal["kl_div", "m3_kd"]
SaveDtype = Literal["float32", "bfloat16", "float16"]
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

#: The bag sets of the paper (arXiv 2602.05787, §4), by the name it gives them; percentages of every task.
PRESETS: dict[str, tuple[list[float], bool]] = {
    "{20,40,60,80,100}": ([20, 40, 60, 80, 100], False),
    "{80,100}": ([80, 100], False),
    "{60,60,60}": ([60, 60, 60], False),
    "{50}-and-rest": ([50, 50], True),
}
#: Settings of a bag that can be null, as in `train`: no limit, no adapters.
MAY_BE_NULL = {"max_steps", "lora"}
#: A published model has a prompt for each task, and these.
RESERVED_PROMPTS = {"query", "document", "passage", "corpus"}


class BaseModelSource(Section):
    """The model every bag starts from.

    Attributes:
        path: A local directory, `s3://…`, or `hf://owner/name[@revision]`.
        pooling: How token states become one vector; by default as the model's own files state.
        max_length: Longest input of the published model in tokens; by default its own limit.
    """

    path: Uri
    pooling: Pooling | None = None
    max_length: int | None = Field(None, ge=8)


class Task(Section):
    """One dataset of contrastive rows; its type decides the negatives and the prompt sides.

    Attributes:
        path: A jsonl or parquet file, a directory of them, or a pattern such as `hf://datasets/o/n/data/x-*`.
        limit: Rows after which reading ends.
        expected_rows: Estimated rows, for plans made without reading the data.
    """

    name: Name
    path: Uri
    type: TaskType = "retrieval"
    instruction: Text | None = None
    limit: int | None = Field(None, ge=1)
    expected_rows: int | None = Field(None, ge=1)


class Data(Section):
    """The corpus.

    Attributes:
        instruction: The instruction of tasks that have none of their own.
        query_template: Query text, from `{instruction}` and `{query}`.
        document_template: Document text, from `{document}`, such as `passage: {document}`; by default the
            base model's prompt of documents, which most models lack.
        max_bad_fraction: The run fails when more of a task's rows than this are quarantined.
    """

    tasks: list[Task] = Field(min_length=1)
    instruction: Text = "Given a query, retrieve relevant passages that answer the query"
    query_template: QueryTemplate = "Instruct: {instruction}\nQuery:{query}"
    document_template: DocumentTemplate | None = None
    max_bad_fraction: float = Field(0.01, ge=0, le=1)

    @model_validator(mode="after")
    def _distinct_names(self) -> "Data":
        names = [task.name for task in self.tasks]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"task names must differ; got {', '.join(repeated)} more than once")
        reserved = sorted(RESERVED_PROMPTS & {*names})
        if reserved:
            raise ValueError(
                f"task names must not be {', '.join(sorted(RESERVED_PROMPTS))}: these name the prompts of "
                f"queries and documents; got {', '.join(reserved)}"
            )
        return self

    def prompt(self, task: Task | None = None) -> str:
        """The text before every query of a task, or of a task without an instruction of its own."""
        instruction = (task and task.instruction) or self.instruction
        return self.query_template.format(instruction=instruction, query="")

    @property
    def document_prompt(self) -> str | None:
        """The text before every document; None for that of the base model."""
        return self.document_template and self.document_template.removesuffix("{document}")


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
            NotFoundError: if there is no such file.
            InputError: listing every problem, with the nearest allowed key for a key that is unknown.
        """
        path = os.fspath(path)
        values = recipe_file.read(path)
        if not isinstance(values, dict):
            raise InputError(f"{path}: a recipe is a mapping of sections: {', '.join(cls.model_fields)}")
        if storage is not None:
            values["storage"] = absolute(storage)
        context = {"directory": os.path.dirname(os.path.abspath(path))}
        try:
            return cls.model_validate(recipe_file.expand(values, path), context=context)
        except ValidationError as error:
            raise InputError.of(recipe_file.explain(error, cls), f"{path}: not a valid recipe:") from None

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

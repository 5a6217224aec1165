"""The terms of evaluation: the models, the settings, the results, and the interface of a task."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from boom_ray.recipe import BaseModelSource, Recipe
from boom_ray.recipe.execution import EvaluateExecution

R = TypeVar("R")


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
        label: Its name in tables.
        uri: Its directory, or `hf://owner/name[@revision]`.
        source: Pooling and maximum length of a base model whose directory does not state them.
        digest: Identity of its content; computed from the directory if None.
        hub_name: `organization/name` in mteb's result files; by default the name on the hub, or
            `local/NAME-VERSION`.
    """

    label: str
    uri: str
    source: BaseModelSource | None = None
    digest: str | None = None
    hub_name: str | None = None


@dataclass(frozen=True)
class EvaluationProtocol:
    """The settings that are common to all models of a measurement.

    Attributes:
        query_prompt: Local tasks: text before every query; None for each model's own `query` prompt.
        document_prompt: Local tasks: text before every document; None for each model's own `document` prompt.
        query_template: mteb tasks: query text from `{instruction}`, the task's own, and `{query}`; None for
            the prompts of each model's directory, as mteb selects them.
        max_length: Tokens after which texts are truncated; None for each model's own limit.
        batch_size: mteb tasks: texts in one forward pass.
        execution: Device and resources of each model.
    """

    query_prompt: str | None = None
    document_prompt: str | None = None
    query_template: str | None = None
    max_length: int | None = None
    batch_size: int = 32
    execution: EvaluateExecution = field(default_factory=EvaluateExecution)

    @property
    def device(self) -> str:
        """`cuda` or `cpu`."""
        return "cuda" if self.execution.use_gpu else "cpu"

    @classmethod
    def of(cls, recipe: Recipe) -> "EvaluationProtocol":
        """The settings with which a run measures its models: with its prompts, whatever each model's are."""
        return cls(
            query_prompt=recipe.data.prompt(),
            document_prompt=recipe.data.document_prompt,
            max_length=recipe.evaluate.max_length,
            execution=recipe.evaluate.execution,
        )


@dataclass(frozen=True)
class Measurement:
    """The scores of one model on one task.

    Attributes:
        scores: Metric -> value, the main score first.
        queries: nDCG@10 of each query by its id; empty where a task has no queries or reports no such scores.
        counts: The numbers of `queries`, `documents` and `judgements` that the scores are of; empty where a
            task is not a local one of retrieval or reranking.
    """

    scores: dict[str, float]
    queries: dict[str, float]
    counts: dict[str, int] = field(default_factory=dict)


Measurements = dict[str, dict[str, Measurement]]  # label -> task -> measurement


@dataclass(frozen=True)
class EvaluationTask(ABC, Generic[R]):
    """A task that models are measured on: how to run it, and the layout of its result files.

    `R` is a result as those files hold it. `load` and `run` execute in a Ray worker, everything else in the
    driver.
    A subject that a method receives has its digest and its hub name.

    Attributes:
        name: Its name in tables; the path up to the last `/` is its group.
    """

    name: str

    @abstractmethod
    def load(self, subject: Subject, protocol: EvaluationProtocol) -> Any:
        """Load a model, for all tasks of this class.

        Raises:
            BoomError: if it cannot be loaded.
        """

    @abstractmethod
    def run(self, model: Any, subject: Subject, protocol: EvaluationProtocol, partial: R | None) -> R:
        """Measure a model.

        Args:
            model: The model that `load` returned.
            partial: A cached result that is incomplete; what it contains is not measured again.

        Raises:
            BoomError: if the task cannot be read or measured.
        """

    @abstractmethod
    def measurement(self, result: R) -> Measurement:
        """The scores in a complete result."""

    @abstractmethod
    def is_complete(self, result: R) -> bool:
        """Whether a cached result covers the whole task."""

    @abstractmethod
    def read_result(self, cache: str, subject: Subject, protocol: EvaluationProtocol) -> R | None:
        """The cached result for the same content of model and task and the same settings, or None.

        Args:
            cache: URI of a directory.
        """

    @abstractmethod
    def write_result(self, cache: str, subject: Subject, protocol: EvaluationProtocol, result: R) -> None:
        """Store a result where `read_result` finds it."""

"""The typed content of records: for each kind of artifact, how it was made (`config`) and what was measured.

They are plain data, so that every room can read them; the rooms that make artifacts fill them.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from boom_ray.recipe import Bag, Train, identity

TaskScores = dict[str, float]  # metric -> value, the main score first
Scores = dict[str, TaskScores]  # task -> metric -> value


class Content(BaseModel):
    """Base class: unknown keys are errors, so that a record of another version is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskRows(Content):
    """Counts of one task's rows in a corpus.

    Attributes:
        dropped_negatives: Negatives that repeat another one, or are a positive of the same query in any row.
        shared_queries: Queries with positives that one of their rows does not list.
    """

    type: str
    prompt: str
    rows: int
    quarantined: int
    duplicates: int
    dropped_negatives: int
    shared_queries: int


class TaskIdentity(Content):
    """Everything that determines the rows of one task; `content` holds the hashes of its files."""

    type: str
    prompt: str
    limit: int | None
    content: list[str]
    document_prompt: str | None = None

    @model_serializer(mode="wrap")
    def _without_default(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # `document_prompt` is newer than published corpora: a None would change their fingerprints.
        values: dict[str, Any] = serialize(self)
        if self.document_prompt is None:
            values.pop("document_prompt", None)
        return values


class StoredSource(Content):
    """One source file of a task as it was when the corpus was stored; `mtime_ns` is in ns since 1970."""

    task: str
    uri: str
    size: int
    mtime_ns: int
    xxh3_128: str


class CorpusConfig(Content):
    """A corpus: counts and identities by task name, and the files its rows came from."""

    tasks: dict[str, TaskRows]
    identities: dict[str, TaskIdentity]
    sources: list[StoredSource]


class CoreConfig(Content):
    """A core sample: rows drawn of each task."""

    rows: dict[str, int]


class BagsConfig(Content):
    """Bag manifests: the recipe's `bags` section; rows of each bag, in total and by task."""

    ratios: list[Bag]
    partition: bool
    seed: int
    rows: list[int]
    tasks: list[dict[str, int]]


class TrainingConfig(Content):
    """The fine-tuning of one bag.

    Attributes:
        bag: Its entry in the recipe.
        settings: The recipe's `train` section with the bag's own settings.
        averaged: Steps whose weights are averaged in it; none if it has the weights of the last one.
    """

    bag: Bag
    settings: Annotated[Train, PlainSerializer(identity)]
    averaged: list[int] = []


class MergeConfig(Content):
    """A merge: settings, and per model the resolved weight and [min, mean, max] of its coefficients.

    Weights may be those of groups of layers.

    Attributes:
        scale_from: The model of scale 0; None for the base model.
        adapter_rank: Bound of the rank, if the result is an adapter.
        adapter_error: Frobenius norm of what that rank leaves out, relative to the merged task vectors.
    """

    method: str
    space: Literal["deltas", "weights"]
    weights: list[float] | dict[str, list[float]]
    dtype: str
    scale: float
    scale_from: Literal["parent"] | None = None
    iterations: int
    density: float | list[float]
    seed: int
    normalize: bool | None = None
    adapter_rank: int | None = None
    adapter_error: float | None = None
    coefficients: list[list[float]] | None = None

    def __str__(self) -> str:
        """Method and space, and the scale if it is not 1."""
        origin = f" from the {self.scale_from}" if self.scale_from else ""
        return f"{self.method}, {self.space}" + ("" if self.scale == 1 else f", scale {self.scale:g}{origin}")


class UpdateConfig(Content):
    """The lineage of an update's child.

    Attributes:
        parent: Version the update was merged with.
        new_tasks: Names of the tasks that it adds.
        flat: Whether all models that contribute were merged at once.
        leaves: Paths below the run of all trained models that contribute, this update's last.
    """

    parent: str
    new_tasks: list[str]
    flat: bool
    leaves: list[str]


class ModelConfig(Content):
    """A model: the rows behind it if known, and how it was trained, merged or updated."""

    rows: int | None = None
    training: TrainingConfig | None = None
    merge: MergeConfig | None = None
    update: UpdateConfig | None = None

    def facts(self) -> dict[str, Any]:
        """All settings by name, flattened over the sections."""
        merged: dict[str, Any] = {"rows": self.rows}
        if self.training:
            merged |= identity(self.training.settings) | {"bag": self.training.bag.describe()}
        for section in filter(None, (self.merge, self.update)):
            merged |= section.model_dump(mode="json")
        return {key: value for key, value in merged.items() if value is not None}


class SelfCheck(Content):
    """Mean reciprocal rank on rows outside of the bag before and after training; None without retrieval."""

    before: float | None
    after: float | None = None


class TrainingMetrics(Content):
    """The training of one bag: steps, last loss, tokens, seconds over all attempts, ranks."""

    step: int
    loss: float
    tokens: int
    seconds: float
    check: SelfCheck
    num_ranks: int


class Difference(Content):
    """The score of one model minus that of another.

    Attributes:
        ours: Mean over tasks of their main scores.
        theirs: The same of the other model.
        low: Lower end of the confidence interval of the difference; None if a task has no queries.
        high: Upper end.
        verdict: `better`, `worse`, `undecided`, or `unknown`.
        queries: How many queries it was measured on.
    """

    ours: float
    theirs: float
    low: float | None
    high: float | None
    verdict: str
    queries: int


class Comparison(Content):
    """Differences on each task, and in the mean of each group of tasks and of all."""

    ours: str
    theirs: str
    metric: str
    tasks: dict[str, Difference]
    means: dict[str, Difference]


class CandidateMerge(Content):
    """One way to merge: method, scale and weights as in the settings of a merge."""

    method: str
    scale: float
    weights: str | list[float] | dict[str, list[float]]


class SearchMetrics(Content):
    """The candidates of a merge, by their labels, on the tasks that one was chosen by.

    Attributes:
        candidates: How each merges.
        scores: Mean main score over the tasks.
        errors: Standard error of the difference to the best score.
        chosen: Label of the candidate that was merged.
        development: Identity of the files of the tasks.
        tasks: Identity of the content of each task; the model is not measured on these.
    """

    candidates: dict[str, CandidateMerge]
    scores: dict[str, float]
    errors: dict[str, float]
    chosen: str
    development: str
    tasks: dict[str, str]


class LearningMetrics(Content):
    """Coefficients that were learned: on what, and what it changed.

    Attributes:
        tasks: Identity of the content of each development task; a model is not measured on these.
        queries: Queries of all of them.
        strength: Of the penalty on changes of the coefficients.
        start: Coefficients of each group of layers before; those after are the weights of the merge.
        loss_before: Mean loss at the start, without the penalty.
        loss_after: The same in the end.
    """

    tasks: dict[str, str]
    queries: int
    steps: int
    strength: float
    start: dict[str, list[float]]
    loss_before: float
    loss_after: float


class UpdateCost(Content):
    """Rows, optimizer steps and tokens of distinct texts: of the update, and of training all bags again."""

    rows: int
    steps: int
    tokens: int
    all_rows: int
    all_steps: int
    all_tokens: int


class UpdateMetrics(Content):
    """Parent, update and child on `old` and `new` tasks.

    Attributes:
        scores: `old` and `new` as far as there are such tasks -> label -> task -> metric -> value.
        change: Relative change of `old_mean` and `new_mean` from parent to child, in percent.
        comparisons: Child compared with parent, on `old` and `new`.
    """

    scores: dict[str, dict[str, Scores]] = {}
    change: dict[str, float] = {}
    comparisons: dict[str, Comparison] = {}
    cost: UpdateCost | None = None


class ModelMetrics(Content):
    """Everything measured of a model.

    Attributes:
        evaluation: Label -> task -> metric -> value; the model itself is `merged`.
        means: Label -> group of tasks -> metric -> value.
        comparison: The merged model compared with the base.
    """

    training: TrainingMetrics | None = None
    evaluation: dict[str, Scores] = {}
    means: dict[str, Scores] = {}
    comparison: Comparison | None = None
    search: SearchMetrics | None = None
    learning: LearningMetrics | None = None
    update: UpdateMetrics | None = None


class EmbeddingsConfig(Content):
    """Embeddings of a source.

    Attributes:
        model: Digest of the model.
        prompt: Text before every input.
        chunk: Tokens after which texts were cut into pieces, if they were.
        low: Lower end of each dimension's scale, for `int8` and `uint8`.
        high: Upper end: a stored number `n` of `uint8` stands for `n / 255 * (high - low) + low`, of `int8`
            for that of `n + 128`.
        precision: Of the computation.
        seconds: Wall time of the run that finished it.
        unchanged: Rows that earlier outputs (`since`) had already.
        id_column: Column of ids; None: an id is `file:row`.
        deleted: Ids of earlier outputs that the source no longer has.
    """

    model: str
    prompt_name: str | None
    prompt: str
    chunk: int | None
    overlap: int | None = None
    chunk_output: str | None = None
    dimensions: int
    dtype: str
    low: list[float] | None = None
    high: list[float] | None = None
    rows: int
    tokens: int
    precision: str
    seconds: float
    unchanged: int
    deleted: list[int | str]
    since: list[str]
    source: str
    text_column: str
    id_column: str | None


class EmbeddingsMetrics(Content):
    """Seconds in each stage, summed over processes; `span` is wall time, `padding` a fraction of tokens."""

    read: float
    tokenize: float
    encode: float
    write: float
    span: float
    padding: float

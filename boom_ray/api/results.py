"""Results of the API that no room of the package has a type for."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from boom_ray import artifacts, storage
from boom_ray.artifacts import EmbeddingsRecord, ModelRecord
from boom_ray.runs import ancestry, versions
from boom_ray.runs.ancestry import Ancestor
from boom_ray.runs.scores import ScoreTable

if TYPE_CHECKING:
    import pandas
    from rich.table import Table
    from rich.tree import Tree


@dataclass(frozen=True)
class MergeResult:
    """The outcome of a merge.

    Attributes:
        model: URI of the merged model.
        record: Its record.
        merged: URIs of the models that were merged, in order.
        space: `deltas` (task vectors) or `weights`.
        grams: Gram matrix [M, M] of every tensor by name.
    """

    model: str
    record: ModelRecord
    merged: list[str]
    space: str
    grams: dict[str, list[list[float]]] = field(repr=False)

    def distances(self) -> dict[str, Any]:
        """Norms of the merged models and angles between them, as `boom_ray.merge.distances` describes."""
        from boom_ray.merge.distances import distances

        return distances([storage.name_of(uri) for uri in self.merged], self.space, self.grams)

    def write_distances(self, path: str) -> list[str]:
        """Write the distances as JSON and as a heat map.

        Returns:
            URIs of both files.
        """
        from boom_ray.merge.distances import write

        uri = storage.absolute(path)
        return [uri, write(self.distances(), uri)]


@dataclass(frozen=True)
class EvaluationResult:
    """The outcome of an evaluation.

    Attributes:
        scores: The scores of every model on every task.
        problems: Why tasks of mteb were not measured; a second call measures only these.
        results: URI of mteb's result files; None if mteb did not run.
        counts: The numbers of queries, documents and judgements of each local task of retrieval or reranking.
    """

    scores: ScoreTable
    problems: list[str]
    results: str | None
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_frame(self) -> "pandas.DataFrame":
        """The main scores: one row per task and mean, one column per model."""
        return self.scores.to_frame()


@dataclass(frozen=True)
class EmbedResult:
    """The outcome of an embedding run.

    Attributes:
        vectors: URI of the directory of parquet files.
        record: Its record; `record.config` has dimensions, rows and tokens.
    """

    vectors: str
    record: EmbeddingsRecord

    def to_frame(self) -> "pandas.DataFrame":
        """All rows, in no particular order; `embedding` is a column of arrays."""
        import pandas
        from pyarrow import parquet

        names = [name for name in self.record.files if name.endswith(".parquet")]
        tables = []
        for name in names:
            with storage.open_input(storage.join(self.vectors, name)) as file:
                tables.append(parquet.read_table(file).to_pandas())
        return pandas.concat(tables, ignore_index=True) if tables else pandas.DataFrame()


@dataclass(frozen=True)
class ModelVersion:
    """A published version of a run.

    Attributes:
        run: Name of the run.
        version: Such as `v0001`.
        model: URI of the model.
        record: Its record.
        is_current: Whether the run stands for this version.
    """

    run: str
    version: str
    model: str
    record: ModelRecord
    is_current: bool


@dataclass(frozen=True)
class ModelsTable:
    """The versions of one run, or of all runs of a storage, oldest first.

    Attributes:
        runs: URIs of the runs.
    """

    runs: list[str]
    versions: list[ModelVersion]

    def __iter__(self) -> Iterator[ModelVersion]:
        return iter(self.versions)

    def __len__(self) -> int:
        return len(self.versions)

    def to_frame(self) -> "pandas.DataFrame":
        """One row per version."""
        import pandas

        columns = ["run", "version", "model", "created", "rows", "is_current", "digest"]
        rows = [
            [
                *(one.run, one.version, one.model, one.record.created),
                *(one.record.config.rows, one.is_current, one.record.digest),
            ]
            for one in self.versions
        ]
        return pandas.DataFrame(rows, columns=columns)

    def tables(self) -> list["Table"]:
        """One table per run for a terminal."""
        return [versions.table(root) for root in self.runs]


@dataclass(frozen=True)
class Lineage:
    """The ancestry of a model.

    Attributes:
        model: URI of the model.
        ancestor: The model with its parents, and theirs, down to corpus and base.
    """

    model: str
    ancestor: Ancestor

    @classmethod
    def of(cls, model: str) -> "Lineage":
        """Read the ancestry of the model at a URI.

        Raises:
            NotFoundError: if there is no model.
        """
        record = artifacts.read(model, ModelRecord)
        records = ancestry.artifacts_below(storage.parent_of(storage.parent_of(model)))
        return cls(model, ancestry.ancestry(record.as_parent(), records))

    def tree(self) -> "Tree":
        """The ancestry for a terminal."""
        return ancestry.tree(self.model)


@dataclass(frozen=True)
class Reproduction:
    """Two records of one version: as it was published, and as it was made again. Their digests are equal."""

    original: ModelRecord
    copy: ModelRecord

"""Local tasks: directories of files, whose type follows from their names and columns.

| type | files | columns | main metric |
|---|---|---|---|
| Retrieval | `corpus.jsonl queries.jsonl qrels/*.tsv` | BEIR's | `ndcg@10` |
| Reranking | `test` | `query`, `positive` and `negative` (lists of texts) | `map` |
| STS | `test` | `sentence1 sentence2 score` | `spearman` |
| Classification | `train` and `test` | `text label` | `accuracy` |
| Clustering | `test` alone | `text label` | `v-measure` |

`train` and `test` are `.jsonl` or `.parquet` files; a label is a string or an integer.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from boom_ray import artifacts, storage
from boom_ray.data.rows import BadRow, read_raw
from boom_ray.errors import InputError, NotFoundError

LocalTaskType = Literal["Retrieval", "Reranking", "STS", "Classification", "Clustering"]
SUFFIXES = (".jsonl", ".parquet")
SCORING = "ranks of trec_eval"  # part of a task's revision: results of other scorings do not count
MAIN_METRICS: dict[LocalTaskType, str] = {
    "Retrieval": "ndcg@10",
    "Reranking": "map",
    "STS": "spearman",
    "Classification": "accuracy",
    "Clustering": "v-measure",
}


class RankedQuery(BaseModel):
    """A row of a reranking task: a query with the documents to rank."""

    query: str
    positive: Annotated[list[str], Field(min_length=1)]
    negative: list[str]


class ScoredPair(BaseModel):
    """A row of an STS task: two sentences and their similarity, on any scale."""

    sentence1: str
    sentence2: str
    score: float


class LabelledText(BaseModel):
    """A row of a classification or clustering task: a text with its class or cluster."""

    text: str
    label: str | int


RowT = TypeVar("RowT", RankedQuery, ScoredPair, LabelledText)


@dataclass(frozen=True)
class LocalTask:
    """A directory with a task.

    Attributes:
        name: Its path relative to the directory that was searched.
    """

    name: str
    type: LocalTaskType
    uri: str

    @cached_property
    def revision(self) -> str:
        """Identity of its content and of its scoring; reads every file."""
        return artifacts.fingerprint([artifacts.hash_tree(self.uri), SCORING])


def find(data: str) -> list[LocalTask]:
    """Every task at or below a directory, sorted by name.

    Raises:
        NotFoundError: if there is no task.
        InputError: if the columns of a file match no type of task.
    """
    folders: dict[str, set[str]] = {}
    for name in storage.list_files(data):
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder, set()).add(file)
    markers = {"corpus.jsonl", *(f"test{suffix}" for suffix in SUFFIXES)}
    found = [folder for folder, files in folders.items() if files & markers]
    if not found:
        raise NotFoundError(
            f"{data}: no tasks there: no BEIR directory (corpus.jsonl, queries.jsonl, qrels/*.tsv), and no "
            "directory with a test.jsonl or test.parquet"
        )
    tasks = [_task(data, folder, folders[folder]) for folder in found]
    return sorted(tasks, key=lambda task: task.name)


def _task(data: str, folder: str, files: set[str]) -> LocalTask:
    uri = storage.join(data, folder).rstrip("/")
    type_ = "Retrieval" if "corpus.jsonl" in files else _type_by_columns(uri, files)
    return LocalTask(folder or storage.name_of(data), type_, uri)


def _type_by_columns(uri: str, files: set[str]) -> LocalTaskType:
    path = _file(uri, "test")
    columns = set(next((row for _, row in read_raw(path) if isinstance(row, dict)), {}))
    if columns >= RankedQuery.model_fields.keys():
        return "Reranking"
    if columns >= ScoredPair.model_fields.keys():
        return "STS"
    if columns >= LabelledText.model_fields.keys():
        return "Classification" if any(f"train{suffix}" in files for suffix in SUFFIXES) else "Clustering"
    allowed = ", or ".join(" ".join(row.model_fields) for row in (RankedQuery, ScoredPair, LabelledText))
    raise InputError(f"{path}: columns {' '.join(sorted(columns)) or 'none'}; expected {allowed}")


def _file(uri: str, split: str) -> str:
    names = storage.list_names(uri)
    return next(storage.join(uri, split + suffix) for suffix in SUFFIXES if split + suffix in names)


def read(uri: str, split: str, kind: type[RowT]) -> list[RowT]:
    """The rows of one split (`train` or `test`) of a task.

    Raises:
        InputError: naming the file and line of the first row that is not a `kind`.
    """
    path, rows = _file(uri, split), []
    for where, row in read_raw(path):
        if isinstance(row, BadRow):
            raise InputError(f"{where}: {row}")
        try:
            rows.append(kind.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return rows

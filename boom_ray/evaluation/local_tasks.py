"""Local tasks, known by the files and columns of the directories they lie in.

| type | files | columns |
|---|---|---|
| Retrieval | `corpus.jsonl queries.jsonl qrels/*.tsv` | those of BEIR |
| Reranking | `test` | `query`, `positive` and `negative` (lists of texts) |
| STS | `test` | `sentence1 sentence2 score` |
| Classification | `train` and `test` | `text label` |
| Clustering | `test` alone | `text label` |

`train` and `test` are `.jsonl` or `.parquet` files; a label is a text or an integer.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from boom_ray import artifacts, storage
from boom_ray.data.rows import BadRow, read_raw
from boom_ray.errors import BoomError

Type = Literal["Retrieval", "Reranking", "STS", "Classification", "Clustering"]
SUFFIXES = (".jsonl", ".parquet")
METRICS: dict[Type, str] = {
    "Retrieval": "ndcg@10",
    "Reranking": "map",
    "STS": "spearman",
    "Classification": "accuracy",
    "Clustering": "v-measure",
}


class Ranking(BaseModel):
    """A query with documents to rank."""

    query: str
    positive: Annotated[list[str], Field(min_length=1)]
    negative: list[str]


class Pair(BaseModel):
    """Two texts and how much alike they are, on any scale."""

    sentence1: str
    sentence2: str
    score: float


class Labelled(BaseModel):
    """A text and its class or cluster."""

    text: str
    label: str | int


Row = TypeVar("Row", Ranking, Pair, Labelled)


@dataclass(frozen=True)
class LocalTask:
    """One directory with a task.

    Attributes:
        name: Its path below the directory that was searched.
    """

    name: str
    type: Type
    uri: str

    @cached_property
    def revision(self) -> str:
        """Identity of its content, for which every file is read."""
        return artifacts.hash_tree(self.uri)


def find(data: str) -> list[LocalTask]:
    """Every task at or below a directory.

    Raises:
        BoomError: if there is none, or one is in no format above.
    """
    folders: dict[str, set[str]] = {}
    for name in storage.list_files(data):
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder, set()).add(file)
    marks = {"corpus.jsonl", *(f"test{suffix}" for suffix in SUFFIXES)}
    found = [folder for folder, files in folders.items() if files & marks]
    if not found:
        raise BoomError(
            f"{data}: no tasks there: no BEIR directory (corpus.jsonl, queries.jsonl, qrels/*.tsv), and no "
            "directory with a test.jsonl or test.parquet"
        )
    return [_task(data, folder, folders[folder]) for folder in sorted(found)]


def _task(data: str, folder: str, files: set[str]) -> LocalTask:
    uri = storage.join(data, folder).rstrip("/")
    type_ = "Retrieval" if "corpus.jsonl" in files else _type_by_columns(uri, files)
    return LocalTask(folder or storage.name_of(data), type_, uri)


def _type_by_columns(uri: str, files: set[str]) -> Type:
    place = _file(uri, "test")
    columns = set(next((row for _, row in read_raw(place) if isinstance(row, dict)), {}))
    if columns >= Ranking.model_fields.keys():
        return "Reranking"
    if columns >= Pair.model_fields.keys():
        return "STS"
    if columns >= Labelled.model_fields.keys():
        return "Classification" if any(f"train{suffix}" in files for suffix in SUFFIXES) else "Clustering"
    allowed = ", or ".join(" ".join(row.model_fields) for row in (Ranking, Pair, Labelled))
    raise BoomError(f"{place}: columns {' '.join(sorted(columns)) or 'none'}; expected {allowed}")


def _file(uri: str, split: str) -> str:
    names = storage.list_names(uri)
    return next(storage.join(uri, split + suffix) for suffix in SUFFIXES if split + suffix in names)


def read(uri: str, split: str, kind: type[Row]) -> list[Row]:
    """The rows of one split (`train` or `test`) of a task.

    Raises:
        BoomError: naming the file and line of the first row that is something else.
    """
    place, rows = _file(uri, split), []
    for where, row in read_raw(place):
        if isinstance(row, BadRow):
            raise BoomError(f"{where}: {row}")
        try:
            rows.append(kind.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            raise BoomError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return rows

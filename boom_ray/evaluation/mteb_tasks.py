"""Tasks of mteb: its own, by the names of benchmarks and tasks, and local ones that read files."""

from typing import Any, ClassVar

import mteb
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskClustering, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.results import TaskResult

from boom_ray.errors import InputError
from boom_ray.evaluation.beir import read_beir
from boom_ray.evaluation.local_tasks import LabelledText, LocalTask, RankedQuery, ScoredPair, read

COUNTS = ("queries", "documents", "judgements")
MTEB_METRICS = {  # mteb's names of `local_tasks.MAIN_METRICS`
    "Retrieval": "ndcg_at_10",
    "Reranking": "map_at_1000",
    "STS": "cosine_spearman",
    "Classification": "accuracy",
    "Clustering": "v_measure",
}


def named(names: tuple[str, ...]) -> list[mteb.AbsTask]:
    """The tasks of benchmarks such as `MTEB(eng, v2)`, and single tasks, without repetition.

    Raises:
        InputError: if mteb has neither a benchmark nor a task of a name, or two benchmarks contain one task
            with different languages.
    """
    found: dict[str, mteb.AbsTask] = {}
    for task in (task for name in names for task in _tasks_of(name)):
        first = found.setdefault(task.metadata.name, task)
        if set(first.hf_subsets) != set(task.hf_subsets):
            raise InputError(
                f"{', '.join(names)}: contain {task.metadata.name} twice, with {len(first.hf_subsets)} and "
                f"with {len(task.hf_subsets)} languages or subsets. Measure on one benchmark after the other"
            )
    return list(found.values())


def _tasks_of(name: str) -> list[mteb.AbsTask]:
    try:
        return list(mteb.get_benchmark(name).tasks)
    except KeyError as no_benchmark:
        try:
            return [mteb.get_task(name)]
        except KeyError as no_task:
            reasons = f"{no_benchmark.args[0]} {no_task.args[0].removeprefix('KeyError: ')}"
            raise InputError(
                f"{name!r}: not a benchmark and not a task of mteb {mteb.__version__}. {reasons}"
            ) from None


def local(task: LocalTask) -> mteb.AbsTask:
    """A directory as a task of mteb; its files are read when mteb loads the data."""
    metadata = mteb.TaskMetadata(
        name=task.name.replace("/", "__"),
        description=f"The task at {task.uri}",
        dataset={"path": task.uri, "revision": task.revision},
        type=task.type,
        category="t2c" if task.type in ("Classification", "Clustering") else "t2t",
        eval_langs=["und-Latn"],
        main_score=MTEB_METRICS[task.type],
    )
    # A class of its own: mteb reads metadata from classes, and drops an instance's when it unloads the data.
    return type(metadata.name, (LOCAL_TASK_CLASSES[task.type],), {"metadata": metadata})()


class _LocalData:
    """Reads the files of a directory instead of a dataset of the hub."""

    metadata: ClassVar[mteb.TaskMetadata]
    dataset: Any
    data_loaded: bool

    def load_data(self, num_proc: int | None = None, **options: Any) -> None:
        """See `AbsTask.load_data`."""
        if not self.data_loaded:
            self.dataset = self.read(self.metadata.dataset["path"])
            self.data_loaded = True

    def read(self, uri: str) -> Any:
        """The data in the form that the type of task needs."""
        raise NotImplementedError


class _LocalSearch(_LocalData, AbsTaskRetrieval):
    """A task of retrieval or reranking, whose `counts` are among its scores in mteb's result files."""

    counts: dict[str, int]

    def task_specific_scores(self, *_: Any, **options: Any) -> dict[str, float]:
        """See `AbsTaskRetrieval.task_specific_scores`."""
        return {f"num_{kind}": count for kind, count in self.counts.items()}


class LocalRetrieval(_LocalSearch):
    """A BEIR directory.

    mteb ignores a document with the id of the query. Here it does so for queries that are documents only:
    these get the same ids, and others, whose ids can be those of documents by chance, get other ones.
    """

    ignore_identical_ids = True

    def read(self, uri: str) -> Any:
        """See `_LocalData.read`."""
        beir = read_beir(uri)
        self.counts = beir["counts"]
        ids = {name: f"{'document' if name in beir['own'] else 'query'} {name}" for name in beir["queries"]}
        data = RetrievalSplitData(
            corpus=_texts({f"document {name}": text for name, text in beir["corpus"].items()}),
            queries=_texts({ids[name]: text for name, text in beir["queries"].items()}),
            relevant_docs={
                ids[query]: {f"document {name}": grade for name, grade in grades.items()}
                for query, grades in beir["relevant_docs"].items()
            },
            top_ranked=None,
        )
        return {"default": {"test": data}}


class LocalReranking(_LocalSearch):
    """Queries, each with its own positive and negative documents."""

    def read(self, uri: str) -> Any:
        """See `_LocalData.read`."""
        queries: dict[str, str] = {}
        documents: dict[str, str] = {}
        relevant, ranked = {}, {}
        for number, row in enumerate(read(uri, "test", RankedQuery)):
            texts = [*row.positive, *row.negative]
            ids = [f"d{number}-{rank}" for rank in range(len(texts))]
            queries[f"q{number}"] = row.query
            documents.update(zip(ids, texts, strict=True))
            relevant[f"q{number}"] = dict.fromkeys(ids[: len(row.positive)], 1)
            ranked[f"q{number}"] = ids
        self.counts = {"queries": len(queries), "documents": len(documents), "judgements": len(documents)}
        data = RetrievalSplitData(
            corpus=_texts(documents), queries=_texts(queries), relevant_docs=relevant, top_ranked=ranked
        )
        return {"default": {"test": data}}


class LocalSTS(_LocalData, AbsTaskSTS):
    """Pairs of sentences with similarity scores, on any scale."""

    def read(self, uri: str) -> Any:
        """See `_LocalData.read`."""
        rows = [row.model_dump() for row in read(uri, "test", ScoredPair)]
        return DatasetDict(test=Dataset.from_list(rows))


class LocalClassification(_LocalData, AbsTaskClassification):
    """Texts with labels, to train a classifier and to test it."""

    def read(self, uri: str) -> Any:
        """See `_LocalData.read`."""
        splits = {split: read(uri, split, LabelledText) for split in ("train", "test")}
        numbers = _numbered([row for rows in splits.values() for row in rows])
        return DatasetDict(
            {
                split: Dataset.from_list([{"text": row.text, "label": numbers[row.label]} for row in rows])
                for split, rows in splits.items()
            }
        )


class LocalClustering(_LocalData, AbsTaskClustering):
    """Texts with the labels of their clusters."""

    max_fraction_of_documents_to_embed = None  # cluster all texts, not mteb's sample of them

    def read(self, uri: str) -> Any:
        """See `_LocalData.read`."""
        rows = read(uri, "test", LabelledText)
        numbers = _numbered(rows)
        texts = [{"sentences": row.text, "labels": numbers[row.label]} for row in rows]
        return DatasetDict(test=Dataset.from_list(texts))


LOCAL_TASK_CLASSES: dict[str, type[_LocalData]] = {
    "Retrieval": LocalRetrieval,
    "Reranking": LocalReranking,
    "STS": LocalSTS,
    "Classification": LocalClassification,
    "Clustering": LocalClustering,
}


def counts_of(result: TaskResult) -> dict[str, int]:
    """The `Measurement.counts` of a local task, from mteb's result; empty for other tasks."""
    entries = result.scores.get("test", [])
    found = entries[0] if len(entries) == 1 else {}
    return {kind: found[f"num_{kind}"] for kind in COUNTS if f"num_{kind}" in found}


def _texts(by_id: dict[str, str]) -> Dataset:
    return Dataset.from_dict({"id": list(by_id), "text": list(by_id.values())})


def _numbered(rows: list[LabelledText]) -> dict[str | int, int]:
    return {label: number for number, label in enumerate(sorted({row.label for row in rows}, key=str))}

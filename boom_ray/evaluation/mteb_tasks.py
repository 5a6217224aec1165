"""mteb's tasks: its own, by the names of benchmarks and tasks, and local ones made of files."""

from typing import Any, ClassVar

import mteb
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskClustering, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData

from boom_ray.errors import BoomError
from boom_ray.evaluation.beir import read_beir, read_judgements
from boom_ray.evaluation.local_tasks import Labelled, LocalTask, Pair, Ranking, read

MAIN_SCORES = {
    "Retrieval": "ndcg_at_10",
    "Reranking": "map_at_1000",
    "STS": "cosine_spearman",
    "Classification": "accuracy",
    "Clustering": "v_measure",
}


def named(names: tuple[str, ...]) -> list[mteb.AbsTask]:
    """The tasks of benchmarks such as `MTEB(eng, v2)`, and single tasks, each once.

    Raises:
        BoomError: if mteb has neither a benchmark nor a task of a name, or two benchmarks want different
            languages of one task.
    """
    found: dict[str, mteb.AbsTask] = {}
    for task in (task for name in names for task in _tasks_of(name)):
        known = found.setdefault(task.metadata.name, task)
        if set(known.hf_subsets) != set(task.hf_subsets):
            raise BoomError(
                f"--mteb: {task.metadata.name} is asked for twice, with {len(known.hf_subsets)} and with "
                f"{len(task.hf_subsets)} languages or parts. Measure on one benchmark after the other"
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
            raise BoomError(
                f"--mteb {name!r}: no benchmark and no task of mteb {mteb.__version__}. {reasons}"
            ) from None


def local(task: LocalTask) -> mteb.AbsTask:
    """A directory as a task of mteb, which is read when it is measured."""
    metadata = mteb.TaskMetadata(
        name=task.name.replace("/", "__"),
        description=f"The task at {task.uri}",
        dataset={"path": task.uri, "revision": task.revision},
        type=task.type,
        category="t2c" if task.type in ("Classification", "Clustering") else "t2t",
        eval_langs=["und-Latn"],
        main_score=MAIN_SCORES[task.type],
    )
    # mteb keeps metadata in classes: an instance's own is dropped with its data.
    return type(metadata.name, (LOCAL[task.type],), {"metadata": metadata})()


class _Local:
    """Loads the files of a directory in place of a data set of the hub."""

    metadata: ClassVar[mteb.TaskMetadata]
    dataset: Any
    data_loaded: bool

    def load_data(self, num_proc: int | None = None, **options: Any) -> None:
        """See `AbsTask.load_data`."""
        if not self.data_loaded:
            self.dataset = self.read(self.metadata.dataset["path"])
            self.data_loaded = True

    def read(self, uri: str) -> Any:
        """The data, as the type of task keeps it."""
        raise NotImplementedError


class LocalRetrieval(_Local, AbsTaskRetrieval):
    """A BEIR directory."""

    def read(self, uri: str) -> Any:
        """See `_Local.read`."""
        beir = read_beir(uri)
        data = RetrievalSplitData(
            corpus=_texts(beir["corpus"]),
            queries=_texts(beir["queries"]),
            relevant_docs=read_judgements(uri),
            top_ranked=None,
        )
        return {"default": {"test": data}}


class LocalReranking(_Local, AbsTaskRetrieval):
    """Queries, each with positive and negative documents of its own."""

    def read(self, uri: str) -> Any:
        """See `_Local.read`."""
        queries: dict[str, str] = {}
        documents: dict[str, str] = {}
        relevant, ranked = {}, {}
        for number, row in enumerate(read(uri, "test", Ranking)):
            texts = [*row.positive, *row.negative]
            ids = [f"d{number}-{place}" for place in range(len(texts))]
            queries[f"q{number}"] = row.query
            documents.update(zip(ids, texts, strict=True))
            relevant[f"q{number}"] = dict.fromkeys(ids[: len(row.positive)], 1)
            ranked[f"q{number}"] = ids
        data = RetrievalSplitData(
            corpus=_texts(documents), queries=_texts(queries), relevant_docs=relevant, top_ranked=ranked
        )
        return {"default": {"test": data}}


class LocalSTS(_Local, AbsTaskSTS):
    """Pairs of texts with a score of their likeness, on any scale."""

    def read(self, uri: str) -> Any:
        """See `_Local.read`."""
        rows = [row.model_dump() for row in read(uri, "test", Pair)]
        return DatasetDict(test=Dataset.from_list(rows))


class LocalClassification(_Local, AbsTaskClassification):
    """Texts with labels, some to train a classifier with and some to measure it with."""

    def read(self, uri: str) -> Any:
        """See `_Local.read`."""
        splits = {split: read(uri, split, Labelled) for split in ("train", "test")}
        numbers = _numbered([row for rows in splits.values() for row in rows])
        return DatasetDict(
            {
                split: Dataset.from_list([{"text": row.text, "label": numbers[row.label]} for row in rows])
                for split, rows in splits.items()
            }
        )


class LocalClustering(_Local, AbsTaskClustering):
    """Texts with the labels of their clusters."""

    max_fraction_of_documents_to_embed = None

    def read(self, uri: str) -> Any:
        """See `_Local.read`."""
        rows = read(uri, "test", Labelled)
        numbers = _numbered(rows)
        texts = [{"sentences": row.text, "labels": numbers[row.label]} for row in rows]
        return DatasetDict(test=Dataset.from_list(texts))


LOCAL: dict[str, type[_Local]] = {
    "Retrieval": LocalRetrieval,
    "Reranking": LocalReranking,
    "STS": LocalSTS,
    "Classification": LocalClassification,
    "Clustering": LocalClustering,
}


def _texts(by_id: dict[str, str]) -> Dataset:
    return Dataset.from_dict({"id": list(by_id), "text": list(by_id.values())})


def _numbered(rows: list[Labelled]) -> dict[str | int, int]:
    return {label: number for number, label in enumerate(sorted({row.label for row in rows}, key=str))}

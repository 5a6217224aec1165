"""Pairs of a query and a relevant document from the retrieval tasks of a development set, in batches."""

from dataclasses import dataclass

import numpy as np

from boom_ray.data.bags import generator
from boom_ray.data.collate import Batch
from boom_ray.errors import InputError
from boom_ray.evaluation import local_tasks
from boom_ray.evaluation.beir import BeirTask, read_beir

BATCH_SIZE = 64
SEED = 0


@dataclass(frozen=True)
class DevelopmentSet:
    """The retrieval tasks that coefficients are learned on.

    Attributes:
        tasks: Their texts and judgements, by name.
        revisions: Identity of the content of each.
    """

    tasks: dict[str, BeirTask]
    revisions: dict[str, str]

    @classmethod
    def read(cls, data: str) -> "DevelopmentSet":
        """Read all retrieval tasks at or below a directory.

        Raises:
            NotFoundError: if the directory has no task.
            InputError: if none is a retrieval task with at least two queries.
        """
        found = [task for task in local_tasks.find(data) if task.type == "Retrieval"]
        tasks = {task.name: read_beir(task.uri) for task in found}
        tasks = {name: task for name, task in tasks.items() if len(task["queries"]) > 1}
        if not tasks:
            raise InputError(
                f"{data}: has no retrieval task with two queries or more, from whose pairs coefficients are "
                "learned. Add one in BEIR's format"
            )
        return cls(tasks, {task.name: task.revision for task in found if task.name in tasks})

    @property
    def num_queries(self) -> int:
        """Queries of all tasks."""
        return sum(len(task["queries"]) for task in self.tasks.values())

    def epoch(self, number: int) -> list[Batch]:
        """Batches of one task each, in which every query occurs once, with one of its relevant documents."""
        batches = []
        for name, task in self.tasks.items():
            draw = generator(SEED, "learn", name, number)
            queries = draw.permutation(sorted(task["queries"]))
            batches += [
                _batch(name, task, part.tolist(), draw)
                for part in np.array_split(queries, -(-len(queries) // BATCH_SIZE))
            ]
        return [batches[index] for index in generator(SEED, "order", number).permutation(len(batches))]


def _batch(name: str, task: BeirTask, queries: list[str], draw: np.random.Generator) -> Batch:
    """One row per query; relevant documents and the query itself are not negatives."""
    relevant = [sorted(task["relevant_docs"][query]) for query in queries]
    chosen = [task["corpus"][documents[draw.integers(len(documents))]] for documents in relevant]
    texts = {text: index for index, text in enumerate(dict.fromkeys(task["queries"][q] for q in queries))}
    num_queries = len(texts)
    documents = {text: num_queries + index for index, text in enumerate(dict.fromkeys(chosen))}
    positives = [
        (row, documents[text])
        for row, (query, own) in enumerate(zip(queries, relevant, strict=True))
        for text in dict.fromkeys(
            task["corpus"][document] for document in [*own, *([query] if query in task["own"] else [])]
        )
        if text in documents
    ]
    return Batch(
        task=name,
        type="retrieval",
        texts=[*texts, *documents],
        prompts=[],
        is_query=np.arange(num_queries + len(documents)) < num_queries,
        queries=np.array([texts[task["queries"][query]] for query in queries]),
        candidates=np.array([[documents[text]] for text in chosen]),
        positives=np.array(positives),
        scores=np.full((len(queries), 1), np.nan, dtype=np.float32),
    )

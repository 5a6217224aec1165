"""The core sample: a percentage of every task behind a version, drawn once, that updates train on again."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from boom_ray import artifacts, storage
from boom_ray.artifacts import CoreRecord, staging
from boom_ray.artifacts.contents import CoreConfig
from boom_ray.data import corpus
from boom_ray.data.answers import Answers, further
from boom_ray.data.bags import generator
from boom_ray.data.training_row import SCHEMA
from boom_ray.recipe import Recipe, Task
from boom_ray.runs.layout import Layout
from boom_ray.runs.updates import ancestors


def history(recipe: Recipe, version: str) -> list[tuple[str, Task]]:
    """Corpus URI and task of all data behind a version, each task once."""
    layout = Layout(recipe.root)
    first = [(layout.corpus, task) for task in recipe.data.tasks]
    return first + [
        (layout.update(child).corpus, task)
        for child, request in ancestors(recipe.root, version)
        for task in request.tasks
    ]


def core_sample(recipe: Recipe, version: str, percent: float) -> list[Task]:
    """Draw a percentage of every task behind a version, unless that was done before.

    Returns:
        Tasks over the sampled rows, which are stored in the run.
    """
    target = Layout(recipe.root).core(version, percent)
    behind = history(recipe, version)
    if artifacts.read_record(target) is None:
        with staging.staged(target) as stage:
            drawn = {}
            for uri, task in behind:
                rows = corpus.load_task(uri, task.name)
                count = max(1, round(len(rows) * percent / 100))
                which = generator(recipe.bags.seed, "core", task.name).choice(len(rows), count, replace=False)
                answers = corpus.load_answers(uri, task)
                sampled = _with_answers(rows, answers, np.sort(which))
                pq.write_table(sampled, f"{stage.local}/{task.name}.parquet")
                drawn[task.name] = count
            fingerprint = artifacts.fingerprint([target, drawn])
            config = CoreConfig(rows=drawn)
            stage.commit(CoreRecord(name=recipe.name, version="core", fingerprint=fingerprint, config=config))
    return [
        task.model_copy(update={"path": storage.join(target, f"{task.name}.parquet"), "limit": None})
        for _, task in behind
    ]


def _with_answers(rows: Dataset, answers: Answers, sample: np.ndarray) -> pa.Table:
    """The sampled rows, with the positives of their queries in rows that are not sampled."""
    table = rows.data.table.take(sample)
    field = SCHEMA.field("answers")
    column = pa.array([texts or None for texts in further(rows, answers, sample)], field.type)
    return table.set_column(table.schema.get_field_index("answers"), field, column)

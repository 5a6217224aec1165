"""The core sample: a share of every task behind a version, drawn once, which updates train on again."""

import pyarrow.parquet as pq

from boom_ray import artifacts, storage
from boom_ray.artifacts import staging
from boom_ray.artifacts.record import Record
from boom_ray.data import corpus
from boom_ray.data.bags import generator
from boom_ray.pipeline.update.request import ancestors
from boom_ray.recipe import Recipe, Task


def history(recipe: Recipe, version: str) -> list[tuple[str, Task]]:
    """Corpus URI and task of all data behind a version, each once."""
    first = [(storage.join(recipe.root, "corpus"), task) for task in recipe.data.tasks]
    return first + [
        (storage.join(recipe.root, "updates", child, "corpus"), task)
        for child, request in ancestors(recipe.root, version)
        for task in request.tasks
    ]


def core_sample(recipe: Recipe, version: str, percent: float) -> list[Task]:
    """Draw a share of every task behind a version, unless that was done before.

    Returns:
        Tasks over the sampled rows, which are kept under `<root>/core/`.
    """
    target = storage.join(recipe.root, "core", f"{version}-{percent:g}")
    behind = history(recipe, version)
    if artifacts.read_record(target) is None:
        with staging.staged(target) as stage:
            drawn = {}
            for uri, task in behind:
                rows = corpus.load_task(uri, task.name)
                count = max(1, round(len(rows) * percent / 100))
                which = generator(recipe.bags.seed, "core", task.name).choice(len(rows), count, replace=False)
                pq.write_table(rows.data.table.take(sorted(which)), f"{stage.local}/{task.name}.parquet")
                drawn[task.name] = count
            made_from = artifacts.fingerprint([target, drawn])
            stage.commit(
                Record(kind="corpus", name=recipe.name, version="core", fingerprint=made_from, config=drawn)
            )
    return [
        task.model_copy(update={"path": storage.join(target, f"{task.name}.parquet"), "limit": None})
        for _, task in behind
    ]

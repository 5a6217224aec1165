"""Bags: the rows of each task that each model is trained on (arXiv 2602.05787, §3).

A bag is a pure function of (corpus, ratios, seed). Every task is sampled by itself, without replacement, so
that its sample does not depend on the other tasks.
"""

import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from boom_ray import artifacts, storage
from boom_ray.artifacts import BagsRecord, CorpusRecord, staging
from boom_ray.artifacts.contents import BagsConfig
from boom_ray.errors import ConflictError, InputError
from boom_ray.recipe import Bags, Recipe, identity

BASELINE = "baseline"  # the model of the full corpus, and the manifest of its bag
Bag = dict[str, np.ndarray]


def name_of(index: int) -> str:
    """Name of a bag, counted from 1."""
    return f"bag-{index + 1}"


def generator(seed: int, *keys: int | str) -> np.random.Generator:
    """An independent random generator for each seed and purpose (`keys`)."""
    words = [xxhash.xxh3_64_intdigest(key.encode()) if isinstance(key, str) else key for key in keys]
    return np.random.default_rng([seed, *words])


def counts(sizes: dict[str, int], bags: Bags) -> list[dict[str, int]]:
    """Rows of each task in each bag, without drawing them; arguments and errors are those of `sample`."""
    if not bags.partition:
        return [
            {task: _count(size, bag.ratio_of(task)) for task, size in sizes.items()} for bag in bags.ratios
        ]
    parts = {task: np.diff(_partition_ends(task, n, bags), prepend=0).tolist() for task, n in sizes.items()}
    return [{task: part[bag] for task, part in parts.items()} for bag in range(len(bags.ratios))]


def _count(size: int, ratio: float) -> int:
    """Rows of a task in a bag: at least one, unless the bag leaves the task out."""
    return max(1, round(size * ratio / 100)) if ratio else 0


def sample(sizes: dict[str, int], bags: Bags) -> list[Bag]:
    """Draw all bags.

    Args:
        sizes: Rows of each task.
        bags: Percentages, seed, and whether the bags are disjoint.

    Returns:
        Per bag, task -> sorted row indices (int64). Independent bags hold at least one row of every task
        that they do not leave out.
    """
    if bags.partition:
        return _partition(sizes, bags)
    drawn = []
    for index, wanted in enumerate(counts(sizes, bags)):
        bag = {}
        for task, count in wanted.items():
            rows = generator(bags.seed, "bag", index, task).choice(sizes[task], count, replace=False)
            bag[task] = np.sort(rows).astype(np.int64)
        drawn.append(bag)
    return drawn


def whole(recipe: Recipe) -> int | None:
    """Index of a bag that holds every row of the corpus, and is trained with the settings of the recipe."""
    for index, bag in enumerate(recipe.bags.ratios):
        if {bag.ratio, *bag.tasks.values()} == {100} and recipe.train_of(index) == recipe.train:
            return index
    return None


def _partition(sizes: dict[str, int], bags: Bags) -> list[Bag]:
    drawn: list[Bag] = [{} for _ in bags.ratios]
    for task, size in sizes.items():
        ends = _partition_ends(task, size, bags)
        order = generator(bags.seed, "partition", task).permutation(size)
        for bag, rows in zip(drawn, np.split(order, ends)[: len(drawn)], strict=True):
            bag[task] = np.sort(rows).astype(np.int64)
    return drawn


def _partition_ends(task: str, size: int, bags: Bags) -> np.ndarray:
    """End of each bag's part in the permuted rows of a task."""
    ratios = [bag.ratio_of(task) for bag in bags.ratios]
    num_bags = np.count_nonzero(ratios)
    if size < num_bags:
        raise InputError(f"task {task}: {size} rows cannot be split over {num_bags} disjoint bags")
    return np.round(np.cumsum(ratios) * size / 100).astype(int)


def publish(corpus: CorpusRecord, bags: Bags, target: str) -> BagsRecord:
    """Write the manifests of all bags, one parquet file (`task`, `row`) each, unless they exist.

    Returns:
        The record, with the rows of each bag.

    Raises:
        ConflictError: if `target` holds bags of another corpus or other settings.
    """
    fingerprint = artifacts.fingerprint([corpus.fingerprint, identity(bags.samples)])
    existing = artifacts.find(target, BagsRecord)
    if existing:
        if existing.fingerprint != fingerprint:
            raise ConflictError(f"{target}: holds other bags. Give the recipe another name, or delete them")
        return existing
    sizes = {task: counts.rows for task, counts in corpus.config.tasks.items()}
    drawn = sample(sizes, bags)
    with staging.staged(target) as stage:
        for index, bag in enumerate(drawn):
            tasks = np.repeat(list(bag), [len(rows) for rows in bag.values()])
            table = pa.table(
                {"task": pa.array(tasks).dictionary_encode(), "row": np.concatenate(list(bag.values()))}
            )
            pq.write_table(table, os.path.join(stage.local, f"{name_of(index)}.parquet"))
        tasks_of_bags = [{task: len(rows) for task, rows in bag.items()} for bag in drawn]
        config = BagsConfig(
            ratios=bags.ratios,
            partition=bags.partition,
            seed=bags.seed,
            rows=[sum(tasks.values()) for tasks in tasks_of_bags],
            tasks=tasks_of_bags,
        )
        return stage.commit(
            BagsRecord(
                name=corpus.name,
                version="bags",
                fingerprint=fingerprint,
                config=config,
                seed=bags.seed,
                parents=[corpus.as_parent()],
            )
        )


def read(bags: str, index: int) -> Bag:
    """The rows of one bag: task -> sorted row indices (int64)."""
    directory = storage.local_directory(bags)
    table = pq.read_table(os.path.join(directory, f"{name_of(index)}.parquet"))
    return {
        task: table.filter(pc.equal(table["task"], task))["row"].to_numpy()
        for task in pc.unique(table["task"]).to_pylist()
    }

"""The pipeline: corpus -> bags -> M trained models -> one merged model -> measured, and only then published.

Every stage leaves an artifact under `<storage>/<name>/` and is passed over when its artifact is there and
was made from the same input, so the same command finishes a run that was interrupted anywhere.
"""

import itertools
import json
import time
from dataclasses import asdict
from typing import Any

import ray

from boom_ray import artifacts, storage
from boom_ray.artifacts import staging
from boom_ray.artifacts.record import Parent, Record
from boom_ray.artifacts.staging import Stage
from boom_ray.data import bags, corpus
from boom_ray.data.bags import BASELINE
from boom_ray.data.batches import num_steps
from boom_ray.errors import BoomError
from boom_ray.evaluation import compare, tables
from boom_ray.evaluation import measure as evaluate
from boom_ray.evaluation.measure import Measurement, Protocol, Subject
from boom_ray.merge.driver import merge_into
from boom_ray.model import card, directory, self_test
from boom_ray.recipe import Bags, Recipe, identity
from boom_ray.runs.heartbeat import Driver, driving
from boom_ray.runs.identity import claim
from boom_ray.runs.scores import mean_scores
from boom_ray.runs.versions import FIRST_VERSION
from boom_ray.runtime import cluster
from boom_ray.runtime.console import console
from boom_ray.train.bagging import model_uri, train_bags
from boom_ray.train.schedule import best, longest_first, render


def train(recipe: Recipe, only: int | None = None, baseline: bool = False) -> list[str]:
    """Prepare corpus and bags, and train what is missing.

    Args:
        only: Index of the single bag to train.
        baseline: Also train a model on the full corpus, unless one of the bags is the full corpus.

    Returns:
        URIs of the bags' models; last that of the baseline, if one was trained.

    Raises:
        BoomError: as the stages do.
    """
    base = claim(recipe)
    with driving(recipe.root, "train", FIRST_VERSION) as driver:
        return prepare_and_train(recipe, base, driver, only, baseline)


def prepare_and_train(
    recipe: Recipe, base: Parent, driver: Driver, only: int | None = None, baseline: bool = False
) -> list[str]:
    """The same, as a part of what a driver does under a name that it has claimed for the recipe."""
    driver.begin("corpus")
    prepared = corpus.prepare(recipe.data, storage.join(recipe.root, "corpus"), recipe.name)
    _say_corpus(prepared)
    driver.begin("bags")
    drawn = bags.publish(prepared, recipe.bags, storage.join(recipe.root, "bags"))
    sizes = ", ".join(f"{bags.name_of(i)} {rows} rows" for i, rows in enumerate(drawn.config["rows"]))
    console.print(f"bags: {sizes}")
    full = None
    if baseline and bags.whole(recipe.bags) is None:
        full = bags.publish(prepared, _full(recipe), storage.join(recipe.root, BASELINE))
    driver.begin("train")
    cluster.connect()
    return train_bags(recipe, prepared, drawn, base, driver, only, full)


def _full(recipe: Recipe) -> Bags:
    return Bags(ratios=[100], seed=recipe.bags.seed)


def plan(recipe: Recipe, room: int | None = None, baseline: bool = False) -> None:
    """Print what a run would do, without Ray: bags, rows, steps, who runs when, and what it costs.

    Args:
        room: Ranks to plan for; by default as many as all bags need at once.
        baseline: Whether the run trains a model on the full corpus as well.

    Raises:
        BoomError: if rows cannot be counted, or a bag needs more ranks than that.
    """
    train, wanted = recipe.train, recipe.train.execution.num_workers
    sizes = corpus.expected_rows(recipe.data, storage.join(recipe.root, "corpus"))
    for task in recipe.data.tasks:
        console.print(f"corpus: {task.name} ({task.type}): {sizes[task.name]:,} rows")
    counts = bags.counts(sizes, recipe.bags)
    names, ratios = [bags.name_of(index) for index in range(len(counts))], list(recipe.bags.ratios)
    if baseline and bags.whole(recipe.bags) is None:
        counts, names, ratios = (
            [*counts, *bags.counts(sizes, _full(recipe))],
            [*names, BASELINE],
            [*ratios, 100],
        )
    steps = [num_steps(tasks.values(), train) for tasks in counts]
    each = 1 if wanted == "auto" else wanted
    room = room or each * len(names)
    if each > room:
        raise BoomError(f"a bag needs {each} ranks (train.execution.num_workers), there is room for {room}")
    schedule = (
        best(steps, room, train.batch_size)
        if wanted == "auto"
        else longest_first(steps, [each] * len(names), room)
    )
    total, rows = sum(sizes.values()), [sum(tasks.values()) for tasks in counts]
    for name, ratio, count in zip(names, ratios, rows, strict=True):
        console.print(f"{name}: {ratio:g} % of every task, {count:,} rows")
    console.print(f"schedule: room for {room} ranks, longest first")
    for line in render(schedule, names, steps):
        console.print(f"  {line}")
    at_most = train.batch_size * (train.query_max_length + train.group_size * train.passage_max_length)
    console.print(
        f"cost: {sum(rows) / total:.1f}x one pass over the corpus of {total:,} rows; {sum(steps):,} steps of "
        f"at most {at_most:,} tokens; the last bag ends when one rank would have done {schedule.end:,.0f}"
    )


def run(recipe: Recipe, baseline: bool = False) -> str:
    """The whole pipeline.

    Args:
        baseline: Also train one model on the full corpus, and compare the merged model with it.

    Returns:
        URI of the merged model.

    Raises:
        BoomError: as the stages do.
    """
    if len(recipe.bags.ratios) < 2:
        raise BoomError(
            "a run merges two bags or more; the recipe has one. Add bags, or use `boom-ray train`"
        )
    if baseline and not recipe.evaluate.data:
        raise BoomError("--baseline compares two models: give the recipe evaluate.data to measure them on")
    target = model_uri(recipe, FIRST_VERSION)
    if recipe.evaluate.data and artifacts.read_record(target) is None:
        evaluate.find_tasks(recipe.evaluate.data)
    base = claim(recipe)
    with driving(recipe.root, "run", FIRST_VERSION) as driver:
        models = prepare_and_train(recipe, base, driver, baseline=baseline)[: len(recipe.bags.ratios)]
        existing = artifacts.read_record(target)
        if existing is None:
            with staging.staged(target) as stage:
                existing = _merge_and_publish(recipe, models, stage, driver)
        else:
            console.print(f"{target}: published already")
        if baseline:
            driver.begin("compare")
            _compare(recipe, target)
        _say_results(recipe, existing, target)
    return target


def _merge_and_publish(recipe: Recipe, models: list[str], stage: Stage, driver: Driver) -> Record:
    base = recipe.base_model.path
    parents = [record.as_parent() for uri in models if (record := artifacts.read_record(uri))]
    moments = [time.time()]
    driver.begin("merge")
    config, _ = merge_into(stage, models, base, recipe.merge)
    moments.append(time.time())
    driver.begin("evaluate")
    measured = _evaluate(recipe, models, stage) if recipe.evaluate.data else {}
    moments.append(time.time())
    results = evaluate.scores_of(measured)
    metrics: dict[str, Any] = {
        "evaluation": results,
        "means": {k: mean_scores(v) for k, v in results.items()},
    }
    if measured:
        metrics["comparison"] = asdict(compare.compare({one: measured[one] for one in ("merged", "base")}))
    record = Record(
        kind="model",
        name=recipe.name,
        version=FIRST_VERSION,
        fingerprint=artifacts.fingerprint([[parent.digest for parent in parents], identity(recipe.merge)]),
        config={**config, "rows": sum(rows_behind(uri) for uri in models)},
        seed=recipe.train.seed,
        parents=parents,
        metrics=metrics if results else {},
        times=dict(zip(("merge", "evaluate"), itertools.pairwise(moments), strict=True)),
        self_test=embed_self_test(stage),
    )
    table = tables.markdown_table(results) if results else ""
    card.write(stage.local, record, directory.license_of(storage.local_directory(base)), table)
    return stage.commit(record)


def embed_self_test(stage: Stage) -> list[float]:
    """What the model in a stage makes of the self-test sentence; on a worker, which has memory for it."""
    stage.settle()
    found: list[float] = cluster.result_of(ray.remote(num_cpus=1)(self_test.of).remote(stage.uri))
    return found


def rows_behind(uri: str) -> int:
    """Rows a model was trained on."""
    record = artifacts.read_record(uri)
    assert record is not None
    return record.config["rows"]


def _evaluate(recipe: Recipe, models: list[str], stage: Stage) -> dict[str, dict[str, Measurement]]:
    subjects = [Subject("base", recipe.base_model.path, recipe.base_model)]
    subjects += [Subject(storage.name_of(uri), uri) for uri in models]
    subjects += [Subject("merged", stage.uri, digest=stage.settle())]
    return evaluate.measure(subjects, _protocol(recipe), storage.join(recipe.root, "evaluation"))


def _protocol(recipe: Recipe) -> Protocol:
    assert recipe.evaluate.data is not None
    return Protocol(
        data=recipe.evaluate.data,
        query_prompt=directory.prompts_of(recipe.data)["query"],
        max_length=recipe.evaluate.max_length,
    )


def _compare(recipe: Recipe, merged: str) -> None:
    """Measure the merged model against the one trained on the full corpus."""
    whole = bags.whole(recipe.bags)
    full = BASELINE if whole is None else bags.name_of(whole)
    subjects = [Subject("merged", merged), Subject(full, model_uri(recipe, full))]
    results = evaluate.measure(subjects, _protocol(recipe), storage.join(recipe.root, "evaluation"))
    comparison = compare.compare(results)
    console.print(compare.table(comparison))
    place = storage.join(recipe.root, compare.FILE)
    storage.write_bytes(place, json.dumps(asdict(comparison), indent=1).encode())
    console.print(f"comparison: {place}")


def _say_corpus(prepared: Record) -> None:
    for name, task in prepared.config["tasks"].items():
        left_out = f"{task['quarantined']} bad rows in quarantine, {task['duplicates']} repeated"
        console.print(f"corpus: {name} ({task['type']}): {task['rows']} rows; {left_out}")


def _say_results(recipe: Recipe, record: Record, target: str) -> None:
    if record.metrics:
        console.print(tables.terminal_table(record.metrics["evaluation"]))
        place = storage.join(recipe.root, "evaluation.json")
        storage.write_bytes(place, json.dumps(record.metrics, indent=1).encode())
        console.print(f"results: {place}")
    console.print("Next:")
    console.print(f"  boom-ray report {recipe.root}")
    console.print(f"  boom-ray embed {target} INPUT.parquet OUTPUT")
    console.print(f"  boom-ray serve {target}")
    console.print(f"model:   {target}  (digest {record.digest})")

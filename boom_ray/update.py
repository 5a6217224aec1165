"""Updates: new data enters through one small model, merged with its parent (arXiv 2602.05787, §5).

A fresh copy of the base is trained on the new rows and on a core sample of all rows before them, and the
result is merged with the parent. The parent stays; the child names it. What an update makes on its way lies
under `<root>/updates/<version>/` and is found again by a rerun with the same request, whatever was killed.
"""

import itertools
import json
import os
import re
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow.parquet as pq
import yaml
from pydantic import TypeAdapter, ValidationError

from boom_ray import artifact, compare, evaluate, pipeline, report, staging, storage
from boom_ray.artifact import Record
from boom_ray.data import corpus
from boom_ray.data.bags import generator
from boom_ray.data.batches import num_steps
from boom_ray.data.rows import data_files
from boom_ray.driver import Driver, driving
from boom_ray.errors import BoomError
from boom_ray.evaluate import Protocol, Scores, Subject
from boom_ray.merge.run import merge_into
from boom_ray.model import card, directory
from boom_ray.progress import console
from boom_ray.recipe import Bags, Evaluate, Recipe, Task, identity
from boom_ray.train.bagging import model_uri

REQUIREMENT = re.compile(r"(old_mean|new_mean)\s*>=\s*([+-]?\d+(?:\.\d+)?)\s*%")
MEAN = "ndcg@10"


@dataclass(frozen=True)
class Request:
    """What an update is asked to do.

    Attributes:
        parent: Version it adds to.
        tasks: The new data.
        core_percent: Share of every earlier task that is trained on again.
        weights: `equal` (the paper) or `mass`, by the rows behind each model.
        flat: Merge all models that contribute, instead of the parent with the update.
        new_evaluation: BEIR directories for the new data.
        requirements: Least relative change of a mean against the parent, in percent, by its name.
    """

    parent: str
    tasks: list[Task]
    core_percent: float = 40
    weights: Literal["equal", "mass"] = "equal"
    flat: bool = False
    new_evaluation: str | None = None
    requirements: tuple[tuple[str, float], ...] = ()


def parse_requirements(text: str) -> tuple[tuple[str, float], ...]:
    """`old_mean >= -0.5%, new_mean >= +1%` as names and percentages.

    Raises:
        BoomError: if it reads otherwise.
    """
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = REQUIREMENT.fullmatch(part)
        if match is None:
            raise BoomError(
                f"--require {part!r}: expected old_mean >= -0.5% or new_mean >= +1%, joined by commas"
            )
        found.append((match[1], float(match[2])))
    return tuple(found)


def read_tasks(uri: str) -> list[Task]:
    """New data: a file or directory of rows, which becomes a retrieval task, or a YAML list of tasks.

    Raises:
        BoomError: if the YAML is no list of tasks.
    """
    if not uri.endswith((".yaml", ".yml")):
        name = re.sub(r"[^A-Za-z0-9._-]", "-", storage.name_of(uri).split(".")[0].strip("*-")) or "new"
        return [Task(name=name, path=uri)]
    try:
        tasks = TypeAdapter(list[Task]).validate_python(yaml.safe_load(storage.read_bytes(uri)))
    except (yaml.YAMLError, ValidationError) as error:
        raise BoomError(f"{uri}: not a list of tasks as in a recipe's data.tasks: {error}") from error
    return [
        task.model_copy(update={"path": storage.absolute(task.path, os.path.dirname(uri))}) for task in tasks
    ]


def update(recipe: Recipe, request: Request) -> str:
    """Train on new data, merge with the parent, measure, and publish the child.

    Returns:
        URI of the child.

    Raises:
        BoomError: as the stages do; if there is no such parent; or if the child is worse than required, in
            which case nothing is published.
    """
    parent_uri = model_uri(recipe, request.parent)
    parent = artifact.read_record(parent_uri)
    if parent is None:
        raise BoomError(
            f"{parent_uri}: no such version. `boom-ray models {recipe.root}` lists those there are"
        )
    version = _version(recipe, request, parent)
    target = model_uri(recipe, version)
    if artifact.read_record(target):
        console.print(f"{target}: published already")
        return target
    with driving(recipe.root, "update", version) as driver:
        small = _training(recipe, request, parent, version)
        (trained,) = pipeline.prepare_and_train(small, pipeline.claim(small), driver)
        cost = _cost(recipe, small, version)
        with staging.staged(target) as stage:
            record = _merge(recipe, request, parent, trained, version, stage, driver)
            record = record.model_copy(update={"metrics": {**record.metrics, "cost": cost}})
            license_name = directory.license_of(storage.local_directory(recipe.base_model.path))
            card.write(stage.local, record, license_name, _table(record))
            record = stage.commit(record)
    console.print(f"model:   {target}  (digest {record.digest})")
    return target


def _version(recipe: Recipe, request: Request, parent: Record) -> str:
    """The version this request has made or begun, else the next."""
    content = [artifact.hash_file(uri).xxh3_128 for task in request.tasks for uri in data_files(task.path)]
    tasks = [identity(task) for task in request.tasks]
    wanted = [parent.digest, tasks, content, request.core_percent, request.weights, request.flat]
    mine = artifact.fingerprint([*wanted, identity(recipe.train), identity(recipe.merge)])
    updates = storage.join(recipe.root, "updates")
    for name in storage.list_names(updates):
        place = storage.join(updates, name, "update.json")
        if storage.is_file(place) and json.loads(storage.read_bytes(place))["identity"] == mine:
            return name
    taken = [*storage.list_names(updates), *storage.list_names(storage.join(recipe.root, "models"))]
    numbers = [int(name[1:]) for name in taken if re.fullmatch(r"v\d{4}", name)]
    version = f"v{max(numbers) + 1:04d}"
    said = {**asdict(request), "tasks": [task.model_dump() for task in request.tasks], "identity": mine}
    storage.write_bytes(storage.join(updates, version, "update.json"), json.dumps(said, indent=1).encode())
    return version


def read_request(root: str, version: str) -> Request | None:
    """What the update that made a version was asked, without its measurements; None if no update made it."""
    place = storage.join(root, "updates", version, "update.json")
    if not storage.is_file(place):
        return None
    said = json.loads(storage.read_bytes(place))
    tasks = [Task.model_validate(task) for task in said["tasks"]]
    return Request(said["parent"], tasks, said["core_percent"], said["weights"], said["flat"])


def history(recipe: Recipe, version: str) -> list[tuple[str, Task]]:
    """Corpus URI and task of all data behind a version, each once."""
    request = read_request(recipe.root, version)
    if request is None:
        return [(storage.join(recipe.root, "corpus"), task) for task in recipe.data.tasks]
    place = storage.join(recipe.root, "updates", version, "corpus")
    return history(recipe, request.parent) + [(place, task) for task in request.tasks]


def core_sample(recipe: Recipe, version: str, percent: float) -> list[Task]:
    """Draw a share of every task behind a version, once.

    Returns:
        Tasks over the sampled rows, which are kept under `<root>/core/`.
    """
    target = storage.join(recipe.root, "core", f"{version}-{percent:g}")
    behind = history(recipe, version)
    if artifact.read_record(target) is None:
        with staging.staged(target) as stage:
            drawn = {}
            for uri, task in behind:
                rows = corpus.load_task(uri, task.name)
                count = max(1, round(len(rows) * percent / 100))
                which = generator(recipe.bags.seed, "core", task.name).choice(len(rows), count, replace=False)
                sample = rows.select(sorted(which.tolist()))
                pq.write_table(
                    sample.data.table.take(sample._indices.column(0)), f"{stage.local}/{task.name}.parquet"
                )
                drawn[task.name] = count
            made_from = artifact.fingerprint([target, drawn])
            stage.commit(
                Record(kind="corpus", name=recipe.name, version="core", fingerprint=made_from, config=drawn)
            )
    return [
        task.model_copy(update={"path": storage.join(target, f"{task.name}.parquet"), "limit": None})
        for _, task in behind
    ]


def _training(recipe: Recipe, request: Request, parent: Record, version: str) -> Recipe:
    """The recipe of the update model: the same training, of the base, on core and new rows."""
    core = core_sample(recipe, request.parent, request.core_percent)
    known = {task.name for task in core}
    repeated = [task.name for task in request.tasks if task.name in known]
    if repeated:
        raise BoomError(
            f"new data: there is a task {', '.join(repeated)} already. Give the new one another name"
        )
    data = recipe.data.model_copy(update={"tasks": [*core, *request.tasks]})
    changes = {"name": version, "storage": storage.join(recipe.root, "updates"), "data": data}
    return recipe.model_copy(
        update={**changes, "bags": Bags(ratios=[100], seed=recipe.bags.seed), "evaluate": Evaluate()}
    )


def _merge(
    recipe: Recipe,
    request: Request,
    parent: Record,
    trained: str,
    version: str,
    stage: staging.Stage,
    driver: Driver,
) -> Record:
    """Merge into a stage, measure, and say what the record will."""
    leaves = [
        *parent.config.get("leaves", _bag_models(recipe)),
        storage.join("updates", version, "models", "bag-1"),
    ]
    models = [model_uri(recipe, request.parent), trained]
    merged = [storage.join(recipe.root, leaf) for leaf in leaves] if request.flat else models
    weights = {"equal": "equal", "mass": "size"}[request.weights]
    spec = pipeline.merge_spec(recipe.merge.model_copy(update={"weights": weights}))
    moments = [time.time()]
    driver.begin("merge")
    config, _ = merge_into(stage, merged, recipe.base_model.path, spec)
    moments.append(time.time())
    driver.begin("evaluate")
    child = Subject("child", stage.uri, digest=stage.settle())
    metrics = _measure(recipe, request, models, child)
    moments.append(time.time())
    _require(request, metrics)
    parents = [record.as_parent() for uri in merged if (record := artifact.read_record(uri))]
    rows = parent.config["rows"] + pipeline.rows_behind(trained)
    return Record(
        kind="model",
        name=recipe.name,
        version=version,
        fingerprint=artifact.fingerprint(
            [[one.digest for one in parents], identity(recipe.merge), request.weights]
        ),
        config={**config, "rows": rows, "parent": request.parent, "flat": request.flat, "leaves": leaves},
        seed=recipe.train.seed,
        parents=parents,
        metrics=metrics,
        times=dict(zip(("merge", "evaluate"), itertools.pairwise(moments), strict=True)),
        self_test=pipeline.embed_self_test(stage),
    )


def _bag_models(recipe: Recipe) -> list[str]:
    return [storage.join("models", f"bag-{index + 1}") for index in range(len(recipe.bags.ratios))]


def _measure(recipe: Recipe, request: Request, models: list[str], child: Subject) -> dict[str, Any]:
    """Parent, update and child on old and new tasks, and how the child's means changed."""
    subjects = [*map(Subject, ("parent", "update"), models), child]
    prompt = directory.prompts_of(recipe.data)["query"]
    metrics: dict[str, Any] = {"change": {}, "comparison": {}}
    for name, data in (("old", recipe.evaluate.data), ("new", request.new_evaluation)):
        if data is None:
            continue
        protocol = Protocol(data, prompt, recipe.evaluate.max_length)
        measured = evaluate.measure(subjects, protocol, storage.join(recipe.root, "evaluation"))
        results = metrics[name] = evaluate.scores_of(measured)
        console.print(report.terminal_table(results))
        changed = compare.compare({one: measured[one] for one in ("child", "parent")})
        metrics["comparison"][name] = asdict(changed)
        means = {label: report.means(scores)["all"][MEAN] for label, scores in results.items()}
        change = metrics["change"][f"{name}_mean"] = 100 * (means["child"] / means["parent"] - 1)
        console.print(f"{name}_mean: {means['parent']:.4f} -> {means['child']:.4f} ({change:+.2f} %)")
    return metrics


def _require(request: Request, metrics: dict[str, Any]) -> None:
    unmet = []
    for name, least in request.requirements:
        if name not in metrics["change"]:
            what = "evaluate.data in the recipe" if name == "old_mean" else "--new-evaluation DIR"
            raise BoomError(f"--require {name}: nothing to measure it on. Give {what}")
        if metrics["change"][name] < least:
            unmet.append(f"{name}: {metrics['change'][name]:+.2f} %, required {least:+g} %")
    if unmet:
        raise BoomError.of(
            unmet, f"the child of {request.parent} is worse than required and is not published:"
        )


def _table(record: Record) -> str:
    tables: list[dict[str, Scores]] = [
        record.metrics[name] for name in ("old", "new") if name in record.metrics
    ]
    return "\n\n".join(report.markdown_table(results) for results in tables)


def _cost(recipe: Recipe, small: Recipe, version: str) -> dict[str, int]:
    """Tell and return rows and steps of the update, and of training all bags again on everything."""
    counted = artifact.read_record(storage.join(small.root, "corpus"))
    assert counted is not None
    mine = [task["rows"] for task in counted.config["tasks"].values()]
    sizes = [len(corpus.load_task(uri, task.name)) for uri, task in history(recipe, version)]
    full = [[max(1, round(size * ratio / 100)) for size in sizes] for ratio in recipe.bags.ratios]
    rows, steps = sum(map(sum, full)), sum(num_steps(bag, recipe.train) for bag in full)
    console.print(
        f"cost: {sum(mine):,} rows, {num_steps(mine, recipe.train):,} steps; all bags again on all data: "
        f"{rows:,} rows, {steps:,} steps ({sum(mine) / rows:.0%} of the rows)"
    )
    return {
        "rows": sum(mine),
        "steps": num_steps(mine, recipe.train),
        "all_rows": rows,
        "all_steps": steps,
    }

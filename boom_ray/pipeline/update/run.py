"""An update from its driver: train on new data, merge with the parent, measure, and publish the child."""

import itertools
import time
from dataclasses import asdict, replace

from boom_ray import artifacts, storage
from boom_ray.artifacts import staging
from boom_ray.artifacts.record import Record
from boom_ray.errors import BoomError
from boom_ray.evaluation import tables
from boom_ray.evaluation.measure import Subject
from boom_ray.merge.driver import merge_into
from boom_ray.merge.settings import check_settings
from boom_ray.model import card, directory
from boom_ray.pipeline import run as pipeline
from boom_ray.pipeline.update import measure
from boom_ray.pipeline.update import request as requests
from boom_ray.pipeline.update.core import core_sample, history
from boom_ray.pipeline.update.cost import cost
from boom_ray.pipeline.update.measure import Tasks
from boom_ray.pipeline.update.request import Request
from boom_ray.recipe import Bags, Evaluate, Recipe, identity
from boom_ray.runs import versions
from boom_ray.runs.heartbeat import Driver, driving
from boom_ray.runs.identity import claim, with_data_of_run
from boom_ray.runtime.console import console
from boom_ray.train.bagging import model_uri


def update(recipe: Recipe, request: Request) -> str:
    """Bring new data into a published version.

    Returns:
        URI of the child.

    Raises:
        BoomError: as the stages do; if the recipe is not the run's, or the request cannot be met, before
            anything is trained; or if the child is worse than required. Then nothing is published.
    """
    claim(recipe)
    recipe = with_data_of_run(recipe)
    found = requests.find(recipe, request)
    if found is None:
        request = replace(request, parent=request.parent or versions.current(recipe.root))
        tasks = check(recipe, request)
        return make(recipe, request, requests.begin(recipe, request), tasks)
    request, version = found
    target = model_uri(recipe, version)
    if artifacts.read_record(target):
        console.print(f"{target}: published already")
        return target
    tasks = check(recipe, request)
    requests.renew(recipe, request, version)
    return make(recipe, request, version, tasks)


def check(recipe: Recipe, request: Request) -> Tasks:
    """Refuse what would fail after hours of training.

    Returns:
        What the models are measured on.

    Raises:
        BoomError: saying what cannot be done, and what can.
    """
    parent_uri = model_uri(recipe, str(request.parent))
    parent = artifacts.read_record(parent_uri)
    if parent is None:
        raise BoomError(
            f"{parent_uri}: no such version. `boom-ray models {recipe.root}` lists those there are"
        )
    known = {task.name for _, task in history(recipe, str(request.parent))}
    repeated = [task.name for task in request.tasks if task.name in known]
    if repeated:
        raise BoomError(
            f"new data: there is a task {', '.join(repeated)} behind {request.parent} already. "
            "Give the new one another name, in a YAML list of tasks"
        )
    num_models = len(_leaves(recipe, parent)) + 1 if request.flat else 2
    check_settings(request.merge(recipe), num_models, recipe.base_model.path)
    return measure.tasks_of(recipe, request)


def make(recipe: Recipe, request: Request, version: str, tasks: Tasks) -> str:
    """Make the child of a request that was checked, as far as it is not made yet, and publish it.

    Args:
        tasks: What the models are measured on; may be empty.

    Returns:
        Its URI.
    """
    target, parent = model_uri(recipe, version), str(request.parent)
    with driving(recipe.root, "update", version) as driver:
        small = _training(recipe, request, version)
        (trained,) = pipeline.prepare_and_train(small, claim(small), driver)
        spent = cost(recipe, version, trained)
        console.print(f"cost: {spent}")
        with staging.staged(target) as stage:
            models = [model_uri(recipe, parent), trained]
            record = _merge(recipe, request, models, version, stage, tasks, driver)
            record = record.model_copy(update={"metrics": {**record.metrics, "cost": asdict(spent)}})
            license_name = directory.license_of(storage.local_directory(recipe.base_model.path))
            card.write(stage.local, record, license_name, _table(record))
            record = stage.commit(record)
    console.print(f"model:   {target}  (digest {record.digest})")
    return target


def _training(recipe: Recipe, request: Request, version: str) -> Recipe:
    """The recipe of the update model: the same training, of the base, on core and new rows."""
    core = core_sample(recipe, str(request.parent), request.core_percent)
    data = recipe.data.model_copy(update={"tasks": [*core, *request.tasks]})
    changes = {"name": version, "storage": storage.join(recipe.root, "updates"), "data": data}
    return recipe.model_copy(
        update={**changes, "bags": Bags(ratios=[100], seed=recipe.bags.seed), "evaluate": Evaluate()}
    )


def _merge(
    recipe: Recipe,
    request: Request,
    models: list[str],
    version: str,
    stage: staging.Stage,
    tasks: Tasks,
    driver: Driver,
) -> Record:
    """Merge parent and update, or all their models, into a stage; measure; and say what the record will."""
    parent = artifacts.read_record(models[0])
    assert parent is not None
    leaves = [*_leaves(recipe, parent), storage.join("updates", version, "models", "bag-1")]
    merged = [storage.join(recipe.root, leaf) for leaf in leaves] if request.flat else models
    moments = [time.time()]
    driver.begin("merge")
    config, _ = merge_into(stage, merged, recipe.base_model.path, request.merge(recipe))
    moments.append(time.time())
    driver.begin("evaluate")
    child = Subject("child", stage.uri, digest=stage.settle())
    metrics = measure.measure(recipe, tasks, models, child)
    moments.append(time.time())
    measure.require(request, metrics["change"])
    parents = [record.as_parent() for uri in merged if (record := artifacts.read_record(uri))]
    made_from = [[one.digest for one in parents], identity(request.merge(recipe))]
    return Record(
        kind="model",
        name=recipe.name,
        version=version,
        fingerprint=artifacts.fingerprint(made_from),
        config={
            **config,
            "rows": parent.config["rows"] + pipeline.rows_behind(models[1]),
            "new_tasks": [task.name for task in request.tasks],
            "parent": request.parent,
            "flat": request.flat,
            "leaves": leaves,
        },
        seed=recipe.train.seed,
        parents=parents,
        metrics=metrics,
        times=dict(zip(("merge", "evaluate"), itertools.pairwise(moments), strict=True)),
        self_test=pipeline.embed_self_test(stage),
    )


def _leaves(recipe: Recipe, version: Record) -> list[str]:
    """The models that were trained for a version and for all before it, by their paths below the run."""
    bags = [storage.join("models", f"bag-{index + 1}") for index in range(len(recipe.bags.ratios))]
    return version.config.get("leaves", bags)


def _table(record: Record) -> str:
    results = [record.metrics[kind] for kind in ("old", "new") if kind in record.metrics]
    return "\n\n".join(map(tables.markdown_table, results))

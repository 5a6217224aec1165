"""An update: train on new data, merge with the parent, measure, and publish the child."""

import itertools
import logging
import time
from dataclasses import dataclass, replace

from boom_ray import artifacts, storage
from boom_ray.artifacts import ModelRecord, staging
from boom_ray.artifacts.contents import ModelMetrics, UpdateConfig, UpdateMetrics
from boom_ray.artifacts.staging import Stage
from boom_ray.data import bags
from boom_ray.errors import ConflictError, NotFoundError
from boom_ray.evaluation import tables
from boom_ray.evaluation.disjoint import check_disjoint
from boom_ray.evaluation.protocol import Subject
from boom_ray.merge.driver import merge_into
from boom_ray.merge.settings import check_settings
from boom_ray.pipeline.merge_choice import chosen
from boom_ray.pipeline.publish import Publication, publish, self_test_of
from boom_ray.pipeline.training import prepare_and_train
from boom_ray.pipeline.update.core import core_sample, history
from boom_ray.pipeline.update.cost import cost, describe
from boom_ray.pipeline.update.measure import TaskSets, measure_update, require, task_sets
from boom_ray.recipe import Bag, Bags, Evaluate, Recipe
from boom_ray.runs import updates, versions
from boom_ray.runs.driver import Driver, driving
from boom_ray.runs.identity import claim, with_data_of_run
from boom_ray.runs.layout import Layout
from boom_ray.runs.updates import UpdateRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpdateResult:
    """The outcome of an update.

    Attributes:
        model: URI of the child.
        record: Its record.
    """

    model: str
    record: ModelRecord

    @property
    def metrics(self) -> UpdateMetrics:
        """Parent, update and child on old and new tasks, and the cost."""
        return self.record.metrics.update or UpdateMetrics()


def update(recipe: Recipe, request: UpdateRequest) -> UpdateResult:
    """Bring new data into a published version.

    Raises:
        ConflictError: if the recipe is not the run's.
        InputError: if the request cannot be met; before anything is trained.
        BoomError: as the stages do, or if the child is worse than required; then nothing is published.
    """
    claim(recipe)
    recipe = with_data_of_run(recipe)
    found = updates.find(recipe, request)
    if found is None:
        parent = request.parent or versions.current(recipe.root)
        request = request.model_copy(update={"parent": parent})
        sets = check(recipe, request)
        return make(recipe, request, updates.begin(recipe, request), sets)
    request, version = found
    target = Layout(recipe.root).model(version)
    record = artifacts.find(target, ModelRecord)
    if record:
        logger.info("%s: published already", target)
        return UpdateResult(target, record)
    sets = check(recipe, request)
    updates.renew(recipe, request, version)
    return make(recipe, request, version, sets)


def check(recipe: Recipe, request: UpdateRequest) -> TaskSets:
    """Refuse what would fail after hours of training.

    Returns:
        The tasks that the models are measured on.

    Raises:
        NotFoundError: if there is no such parent.
        ConflictError: if a new task has the name of an earlier one.
        InputError: if the models cannot be merged as requested, or a scale would be chosen on what is
            reported.
    """
    parent_uri = Layout(recipe.root).model(str(request.parent))
    parent = artifacts.find(parent_uri, ModelRecord)
    if parent is None:
        raise NotFoundError(f"{parent_uri}: no such version. `boom-ray models {recipe.root}` lists them")
    earlier = {task.name for _, task in history(recipe, str(request.parent))}
    repeated = [task.name for task in request.tasks if task.name in earlier]
    if repeated:
        raise ConflictError(
            f"new data: {request.parent} already has a task {', '.join(repeated)}. "
            "Give the new one another name, in a YAML list of tasks"
        )
    num_models = len(_leaves(recipe, parent)) + 1 if request.flat else 2
    settings, sets = request.merge(recipe), task_sets(recipe, request)
    check_settings(settings, num_models, recipe.base_model.path)
    if settings.scale == "auto" and recipe.evaluate.development:
        for data in (data for directories in sets.values() for data in directories):
            check_disjoint(recipe.evaluate.development, data)
    return sets


def make(recipe: Recipe, request: UpdateRequest, version: str, sets: TaskSets) -> UpdateResult:
    """Make the child of a checked request, as far as it is missing, and publish it.

    Args:
        sets: The tasks that the models are measured on; may be empty.
    """
    layout, parent = Layout(recipe.root), str(request.parent)
    target = layout.model(version)
    with driving(recipe.root, "update", version) as driver:
        if published := artifacts.find(target, ModelRecord):
            logger.info("%s: published already", target)
            return UpdateResult(target, published)
        small = _training_recipe(recipe, request, version)
        (trained,) = prepare_and_train(small, claim(small), driver)
        spent = cost(recipe, version, trained)
        logger.info("cost: %s", describe(spent))
        with staging.staged(target) as stage:
            models = [layout.model(parent), trained]
            publication = _merge(recipe, request, models, version, stage, sets, driver)
            metrics = publication.metrics.update or UpdateMetrics()
            measured = publication.metrics.model_copy(
                update={"update": metrics.model_copy(update={"cost": spent})}
            )
            publication = replace(publication, metrics=measured, table=_table(metrics))
            record = publish(stage, publication, licensed_as=recipe.base_model.path)
    return UpdateResult(target, record)


def _training_recipe(recipe: Recipe, request: UpdateRequest, version: str) -> Recipe:
    """The recipe of the update model: the same training, from the base, on core and new rows."""
    core = core_sample(recipe, str(request.parent), request.core_percent)
    data = recipe.data.model_copy(update={"tasks": [*core, *request.tasks]})
    evaluate = Evaluate(development=recipe.evaluate.development)
    changes = {"name": version, "storage": Layout(recipe.root).updates, "data": data}
    whole = Bags(ratios=[Bag(ratio=100)], seed=recipe.bags.seed)
    return recipe.model_copy(update={**changes, "bags": whole, "evaluate": evaluate})


def _merge(
    recipe: Recipe,
    request: UpdateRequest,
    models: list[str],
    version: str,
    stage: Stage,
    sets: TaskSets,
    driver: Driver,
) -> Publication:
    """Merge parent and update, or all their models, into a stage, and measure the result."""
    layout = Layout(recipe.root)
    parent, trained = (artifacts.read(uri, ModelRecord) for uri in models)
    own = layout.relative(layout.update(version).model(bags.name_of(0)))
    leaves = [*_leaves(recipe, parent), own]
    merged = [storage.join(recipe.root, leaf) for leaf in leaves] if request.flat else models
    moments = [time.time()]
    driver.begin("merge")
    settings, search = chosen(recipe, merged, request.merge(recipe), stage.target)
    merge, _ = merge_into(stage, merged, recipe.base_model.path, settings)
    moments.append(time.time())
    driver.begin("evaluate")
    metrics = measure_update(recipe, sets, models, Subject("child", stage.uri, digest=stage.flush()))
    moments.append(time.time())
    require(request, metrics.change)
    return Publication(
        name=recipe.name,
        version=version,
        parents=[artifacts.read(uri, ModelRecord).as_parent() for uri in merged],
        settings=request.merge(recipe),
        merge=merge,
        rows=(parent.config.rows or 0) + (trained.config.rows or 0),
        update=UpdateConfig(
            parent=str(request.parent),
            new_tasks=[task.name for task in request.tasks],
            flat=request.flat,
            leaves=leaves,
        ),
        seed=recipe.train.seed,
        metrics=ModelMetrics(update=metrics, search=search),
        times=dict(zip(("merge", "evaluate"), itertools.pairwise(moments), strict=True)),
        self_test=self_test_of(stage),
    )


def _leaves(recipe: Recipe, version: ModelRecord) -> list[str]:
    """Paths below the run of all models that were trained for a version and for those before it."""
    if version.config.update:
        return version.config.update.leaves
    layout = Layout(recipe.root)
    names = [bags.name_of(index) for index in range(len(recipe.bags.ratios))]
    return [layout.relative(layout.model(name)) for name in names]


def _table(metrics: UpdateMetrics) -> str:
    return "\n\n".join(map(tables.markdown_table, metrics.scores.values()))

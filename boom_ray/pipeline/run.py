"""A run: corpus → bags → trained models → one merged model, measured and only then published.

Every stage leaves an artifact under `<storage>/<name>/`, and is skipped when its artifact exists and was made
from the same input. So the same command finishes a run that was interrupted anywhere.
"""

import itertools
import logging
import time
from dataclasses import dataclass

from boom_ray import artifacts, storage
from boom_ray.artifacts import ModelRecord, staging
from boom_ray.artifacts.contents import Comparison, ModelMetrics
from boom_ray.artifacts.staging import Stage
from boom_ray.errors import InputError
from boom_ray.evaluation import compare, tables
from boom_ray.evaluation.disjoint import check_disjoint
from boom_ray.evaluation.measure import find_tasks, measure, scores_of
from boom_ray.evaluation.protocol import EvaluationProtocol, Measurements, Subject
from boom_ray.merge.driver import merge_into
from boom_ray.merge.settings import check_settings
from boom_ray.pipeline.merge_choice import chosen, keep_development
from boom_ray.pipeline.publish import Publication, publish, self_test_of
from boom_ray.pipeline.training import baseline_name, prepare_and_train
from boom_ray.recipe import Evaluate, Recipe
from boom_ray.runs.driver import Driver, driving
from boom_ray.runs.identity import claim
from boom_ray.runs.layout import FIRST_VERSION, Layout
from boom_ray.runs.scores import ScoreTable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run.

    Attributes:
        model: URI of the merged model.
        record: Its record.
        scores: Base, bags and merged model on every task; empty without evaluation data.
        comparison: The merged model compared with the baseline if there is one, else with the base.
        root: URI of the run.
    """

    model: str
    record: ModelRecord
    scores: ScoreTable
    comparison: Comparison | None
    root: str


def run(recipe: Recipe, baseline: bool = False) -> RunResult:
    """The whole pipeline.

    Args:
        baseline: Also train one model on the full corpus, and compare the merged model with it.

    Raises:
        BoomError: as the stages do.
    """
    _check(recipe, baseline)
    layout = Layout(recipe.root)
    target = layout.model(FIRST_VERSION)
    if artifacts.read_record(target) is None:
        _check_tasks(recipe.evaluate)
    base = claim(recipe)
    keep_development(recipe)
    with driving(recipe.root, "run", FIRST_VERSION) as driver:
        models = prepare_and_train(recipe, base, driver, baseline=baseline)[: len(recipe.bags.ratios)]
        record = artifacts.find(target, ModelRecord)
        if record is None:
            with staging.staged(target) as stage:
                record = _merge_and_publish(recipe, models, stage, driver)
        else:
            logger.info("%s: published already", target)
        comparison = record.metrics.comparison
        if baseline:
            driver.begin("compare")
            comparison = _compare_with_baseline(recipe, target)
        if record.metrics.evaluation:
            content = record.metrics.model_dump_json(indent=1, exclude_defaults=True)
            storage.write_bytes(layout.evaluation, content.encode())
    return RunResult(target, record, ScoreTable(record.metrics.evaluation), comparison, recipe.root)


def _check(recipe: Recipe, baseline: bool) -> None:
    """Refuse what would fail after hours of training."""
    if len(recipe.bags.ratios) < 2:
        raise InputError(
            "a run merges two bags or more; the recipe has one. Add bags, or use `boom-ray train`"
        )
    if baseline and not recipe.evaluate.data:
        raise InputError("a baseline is compared on evaluation tasks: set evaluate.data in the recipe")
    check_settings(recipe.merge, len(recipe.bags.ratios), recipe.base_model.path)


def _check_tasks(evaluate: Evaluate) -> None:
    """Refuse tasks that are missing, or that are both chosen by and reported."""
    for data in filter(None, (evaluate.data, evaluate.development)):
        find_tasks(data)
    if evaluate.data and evaluate.development:
        check_disjoint(evaluate.development, evaluate.data)


def _merge_and_publish(recipe: Recipe, models: list[str], stage: Stage, driver: Driver) -> ModelRecord:
    base = recipe.base_model.path
    parents = [artifacts.read(uri, ModelRecord) for uri in models]
    moments = [time.time()]
    driver.begin("merge")
    settings, search = chosen(recipe, models, recipe.merge, stage.target)
    merge, _ = merge_into(stage, models, base, settings)
    moments.append(time.time())
    driver.begin("evaluate")
    measured = _evaluate(recipe, models, stage) if recipe.evaluate.data else {}
    moments.append(time.time())
    scores = ScoreTable(scores_of(measured))
    publication = Publication(
        name=recipe.name,
        version=FIRST_VERSION,
        parents=[record.as_parent() for record in parents],
        settings=recipe.merge,
        merge=merge,
        rows=sum(record.config.rows or 0 for record in parents),
        seed=recipe.train.seed,
        metrics=_metrics(measured, scores).model_copy(update={"search": search}),
        table=tables.markdown_table(scores.results) if measured else "",
        times=dict(zip(("merge", "evaluate"), itertools.pairwise(moments), strict=True)),
        self_test=self_test_of(stage),
    )
    return publish(stage, publication, licensed_as=base)


def _metrics(measured: Measurements, scores: ScoreTable) -> ModelMetrics:
    if not measured:
        return ModelMetrics()
    comparison = compare.compare({label: measured[label] for label in ("merged", "base")})
    return ModelMetrics(evaluation=scores.results, means=scores.means, comparison=comparison)


def _evaluate(recipe: Recipe, models: list[str], stage: Stage) -> Measurements:
    subjects = [Subject("base", recipe.base_model.path, recipe.base_model)]
    subjects += [Subject(storage.name_of(uri), uri) for uri in models]
    subjects += [Subject("merged", stage.uri, digest=stage.flush())]
    return measure_on_tasks(recipe, subjects)


def measure_on_tasks(recipe: Recipe, subjects: list[Subject]) -> Measurements:
    """Measure models on the evaluation tasks of a recipe; results are cached in the run."""
    assert recipe.evaluate.data is not None
    protocol = EvaluationProtocol.of(recipe)
    return measure(subjects, find_tasks(recipe.evaluate.data), protocol, Layout(recipe.root).measurements)


def _compare_with_baseline(recipe: Recipe, merged: str) -> Comparison:
    """Measure the merged model and the one trained on the full corpus, and store the comparison."""
    layout, full = Layout(recipe.root), baseline_name(recipe)
    subjects = [Subject("merged", merged), Subject(full, layout.model(full))]
    comparison = compare.compare(measure_on_tasks(recipe, subjects))
    storage.write_bytes(layout.comparison, comparison.model_dump_json(indent=1).encode())
    return comparison

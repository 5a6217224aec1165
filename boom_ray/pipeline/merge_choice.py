"""The choice of a merge on development tasks: its scale, and in a search its method and weights too.

Every candidate is merged into a directory that is deleted in the end. With `scale: auto` it is merged once,
at scale 1 in float32, and measured at all `SCALES` in memory, as base + scale * (merged - base).
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from boom_ray import artifacts, storage
from boom_ray.artifacts.contents import SearchMetrics
from boom_ray.evaluation import choice, tables
from boom_ray.evaluation.choice import Candidates
from boom_ray.evaluation.local_run import LocalEvaluationTask
from boom_ray.evaluation.measure import find_tasks, measure
from boom_ray.evaluation.protocol import EvaluationProtocol, Subject
from boom_ray.evaluation.scaled_task import measure_scales
from boom_ray.merge.merge_job import GramMatrix
from boom_ray.pipeline.publish import merge_models
from boom_ray.recipe import Merge, Recipe
from boom_ray.runs.layout import Layout
from boom_ray.runtime.console import as_text

logger = logging.getLogger(__name__)

#: Half of the merged task vector to twice of it, where the bags of the quickstart lose out of domain again.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class Candidate:
    """One way to merge, and its label in tables."""

    label: str
    settings: Merge


@dataclass(frozen=True)
class Development:
    """The tasks that a merge is chosen on.

    Attributes:
        uri: Their directory.
        protocol: How models are measured on them.
        cache: URI of a directory of measurements, which a choice that was interrupted continues from.
    """

    uri: str
    protocol: EvaluationProtocol
    cache: str


@contextmanager
def scratch_of(target: str) -> Iterator[str]:
    """URI of a directory for the candidates of a merged model, which is deleted in the end."""
    scratch = storage.join(storage.parent_of(target), f".{storage.name_of(target)}.search")
    try:
        yield scratch
    finally:
        storage.delete_tree(scratch)


def keep_development(recipe: Recipe) -> None:
    """Store a copy of the development tasks in the run, if it chooses by them: it can be reproduced later."""
    source, copy = recipe.evaluate.development, Layout(recipe.root).development
    if recipe.merge.scale == "auto" and source not in (None, copy):
        storage.copy_tree(source, copy)


def chosen(
    recipe: Recipe, models: list[str], settings: Merge, target: str
) -> tuple[Merge, SearchMetrics | None]:
    """The settings of a merge of a run with a number as scale; and how it was chosen, if it was.

    Args:
        models: URIs.
        target: URI of the merged model.

    Raises:
        BoomError: as the merge and the evaluation do.
    """
    if settings.scale != "auto":
        return settings, None
    layout = Layout(recipe.root)
    development = Development(layout.development, EvaluationProtocol.of(recipe), layout.measurements)
    with scratch_of(target) as scratch:
        tried = [Candidate(settings.method, settings)]
        return choose(models, recipe.base_model.path, tried, development, scratch)


def choose(
    models: list[str],
    base: str | None,
    tried: Sequence[Candidate],
    development: Development,
    scratch: str,
) -> tuple[Merge, SearchMetrics]:
    """Merge candidates below `scratch`, measure them, and choose one; see `evaluation.choice`.

    Args:
        models: URIs.
        base: URI of the base model, if task vectors are merged.
        tried: Candidates of which all or none have `scale: auto`.

    Returns:
        The settings of the best, with a number as scale; and the scores of all for the record.

    Raises:
        BoomError: as the merge and the evaluation do.
    """
    tasks = find_tasks(development.uri)
    subjects = _merged(models, base, tried, scratch)
    measured = _measured(subjects, base, tried, tasks, development)
    chosen, scores, errors = choice.choose(measured)
    labels = {(label, scale): f"{label} x{scale:g}" for label, scale in scores}
    metrics = SearchMetrics(
        scores={labels[candidate]: score for candidate, score in scores.items()},
        errors={labels[candidate]: error for candidate, error in errors.items()},
        chosen=labels[chosen],
        development=artifacts.hash_tree(development.uri),
        tasks={task.name: task.task.revision for task in tasks},
    )
    logger.info("%s", as_text(tables.score_table(metrics.scores)))
    logger.info("chosen: %s with %.4f on %s", metrics.chosen, scores[chosen], development.uri)
    settings = next(candidate.settings for candidate in tried if candidate.label == chosen[0])
    return settings.model_copy(update={"scale": chosen[1]}), metrics


def _merged(models: list[str], base: str | None, tried: Sequence[Candidate], scratch: str) -> list[Subject]:
    """Every candidate as a model; they merge the same models, so the first Gram matrices serve all."""
    grams: dict[str, GramMatrix] = {}
    subjects = []
    for number, candidate in enumerate(tried, 1):
        logger.info("candidate %d/%d: %s", number, len(tried), candidate.label)
        settings, uri = candidate.settings, storage.join(scratch, candidate.label)
        if settings.scale == "auto":
            dense = {"scale": 1.0, "dtype": "float32", "adapter_rank": None}
            settings = settings.model_copy(update=dense)
        storage.delete_tree(uri)  # of a choice that was killed
        record, merged = merge_models(models, uri, base, settings, grams)
        grams = grams or merged.reusable
        subjects.append(Subject(candidate.label, uri, digest=record.digest))
    return subjects


def _measured(
    subjects: list[Subject],
    base: str | None,
    tried: Sequence[Candidate],
    tasks: list[LocalEvaluationTask],
    development: Development,
) -> Candidates:
    protocol, cache = development.protocol, development.cache
    if tried[0].settings.scale == "auto":
        assert base is not None  # `Merge` allows scales of task vectors only
        return measure_scales(subjects, base, SCALES, tasks, protocol, cache)
    scales = {candidate.label: candidate.settings.factor for candidate in tried}
    found = measure(subjects, tasks, protocol, cache)
    return {(label, scales[label]): measured for label, measured in found.items()}

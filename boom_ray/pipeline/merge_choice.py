"""The choice of a merge on development tasks: of its scale here, of its coefficients in `merge_search`.

With `scale: auto` the models are merged once, at scale 1 in float32, into a directory that is deleted in the
end, and measured at all `SCALES` in memory, as base + scale * (merged - base).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from boom_ray import artifacts, storage
from boom_ray.artifacts.contents import CandidateMerge, SearchMetrics
from boom_ray.evaluation import choice, tables
from boom_ray.evaluation.measure import find_tasks
from boom_ray.evaluation.protocol import EvaluationProtocol, Measurement, Subject
from boom_ray.evaluation.scaled_task import measure_scales
from boom_ray.pipeline.publish import merge_models
from boom_ray.recipe import Merge, Recipe
from boom_ray.runs.layout import Layout
from boom_ray.runtime.console import as_text

logger = logging.getLogger(__name__)

#: Half of the merged task vector to twice of it, where the bags of the quickstart lose out of domain again.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class Candidate:
    """One way to merge.

    Attributes:
        label: Its name in tables.
        settings: Of the merge.
        distance: How far it is from the merge without a choice; see `evaluation.choice`.
    """

    label: str
    settings: Merge
    distance: float = 0.0


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
    """URI of a directory for the choice of a merged model, which is deleted in the end."""
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
        return choose_scale(models, recipe.base_model.path, settings, development, scratch)


def choose_scale(
    models: list[str], base: str, settings: Merge, development: Development, scratch: str
) -> tuple[Merge, SearchMetrics]:
    """Merge models below `scratch`, and choose the scale.

    Args:
        models: URIs.
        base: URI of the base model.

    Returns:
        The settings with the chosen scale, and the scores of all scales for the record.

    Raises:
        BoomError: as the merge and the evaluation do.
    """
    dense = {"scale": 1.0, "dtype": "float32", "adapter_rank": None}
    uri = storage.join(scratch, settings.method)
    storage.delete_tree(uri)  # of a choice that was killed
    record, _ = merge_models(models, uri, base, settings.model_copy(update=dense))
    candidates = [
        Candidate(
            f"{settings.method} x{scale:g}", settings.model_copy(update={"scale": scale}), abs(scale - 1)
        )
        for scale in SCALES
    ]
    measured = measure_scales(
        Subject(settings.method, uri, digest=record.digest),
        base,
        {candidate.label: candidate.settings.factor for candidate in candidates},
        find_tasks(development.uri),
        development.protocol,
        development.cache,
    )
    return choose(candidates, measured, development)


def choose(
    candidates: Sequence[Candidate],
    measured: Mapping[str, Mapping[str, Measurement]],
    development: Development,
) -> tuple[Merge, SearchMetrics]:
    """Choose one of several candidates; see `evaluation.choice`.

    Args:
        measured: Label -> task -> measurement.

    Returns:
        The settings of the chosen one, and the scores of all for the record.
    """
    by_label = {candidate.label: candidate for candidate in candidates}
    distances = {label: candidate.distance for label, candidate in by_label.items()}
    label, errors = choice.choose(measured, distances)
    metrics = SearchMetrics(
        candidates={label: _described(candidate.settings) for label, candidate in by_label.items()},
        scores={label: choice.mean_score(tasks) for label, tasks in measured.items()},
        errors=errors,
        chosen=label,
        development=artifacts.hash_tree(development.uri),
        tasks={task.name: task.task.revision for task in find_tasks(development.uri)},
    )
    logger.info("%s", as_text(tables.score_table(metrics.scores)))
    logger.info("chosen: %s with %.4f on %s", label, metrics.scores[label], development.uri)
    return by_label[label].settings, metrics


def _described(settings: Merge) -> CandidateMerge:
    return CandidateMerge(method=settings.method, scale=settings.factor, weights=settings.weights)

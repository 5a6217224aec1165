"""`boom-ray merge` with a choice: of the scale, the method and the weights, on development tasks.

What is reported is measured on other tasks, after the choice.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from boom_ray import storage
from boom_ray.artifacts import ModelRecord, staging
from boom_ray.artifacts.contents import ModelMetrics, SearchMetrics
from boom_ray.artifacts.staging import Stage
from boom_ray.evaluation import compare
from boom_ray.evaluation.disjoint import check_disjoint
from boom_ray.evaluation.measure import find_tasks, measure, scores_of
from boom_ray.evaluation.protocol import EvaluationProtocol, Subject
from boom_ray.merge.merge_job import GramMatrix
from boom_ray.merge.methods import METHODS
from boom_ray.merge.settings import check_settings
from boom_ray.pipeline.merge_choice import Candidate, Development, choose, scratch_of
from boom_ray.pipeline.publish import merge_models
from boom_ray.recipe import Merge, MergeMethod
from boom_ray.runs.scores import ScoreTable
from boom_ray.runtime.console import as_text

logger = logging.getLogger(__name__)

METHODS_TRIED: tuple[MergeMethod, ...] = ("multislerp", "karcher", "linear")
SEED = 0  # of the random weights


@dataclass(frozen=True)
class SearchRequest:
    """What to choose, and by which tasks.

    Attributes:
        development: Directory of the tasks to choose by.
        test: Directory of tasks that the choice is measured on, compared with the first candidate; None to
            measure nothing.
        trials: Merges to try; 1 for the settings as they are, of which only the scale may be chosen.
    """

    development: str
    test: str | None = None
    trials: int = 1


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Attributes:
        record: Record of the published model; `metrics.search` has the scores of all candidates on the
            development tasks, `metrics.evaluation` those of the choice on the test tasks.
        grams: Gram matrix of each tensor.
    """

    record: ModelRecord
    grams: dict[str, GramMatrix]


def search(
    models: list[str], target: str, base: str | None, settings: Merge, request: SearchRequest
) -> SearchResult:
    """Choose how to merge, and publish the merge.

    Args:
        models: URIs.
        target: URI of the merged model.
        base: URI of the base model, if task vectors are merged.
        settings: Settings of all candidates except method and weights. Its method with equal weights is the
            first candidate; `scale: auto` is chosen too.

    Raises:
        InputError: if the development and the test tasks share queries.
        BoomError: as the merge and the evaluation do.
    """
    staging.refuse_existing(target)
    check_settings(settings, len(models), base)
    if request.test is None:
        find_tasks(request.development)
    else:
        check_disjoint(request.development, request.test)
    tried = candidates(settings, len(models), request.trials)
    with scratch_of(target) as scratch:
        cache = storage.join(scratch, "measurements")
        development = Development(request.development, EvaluationProtocol(), cache)
        chosen, metrics = choose(models, base, tried, development, scratch)
        scale = 1.0 if settings.scale == "auto" else settings.scale
        first = Subject(f"{tried[0].label} x{scale:g}", storage.join(scratch, tried[0].label))

        def measured(stage: Stage) -> ModelMetrics:
            return _on_test(request.test, stage, first, metrics)

        record, merged = merge_models(models, target, base, chosen, measured=measured)
    return SearchResult(record, merged.grams)


def _on_test(test: str | None, stage: Stage, first: Subject, metrics: SearchMetrics) -> ModelMetrics:
    """The choice and the first candidate on the test tasks, with the interval of their difference."""
    if test is None:
        return ModelMetrics(search=metrics)
    subjects = [Subject("merged", stage.uri, digest=stage.flush()), first]
    measured = measure(subjects, find_tasks(test), EvaluationProtocol())
    scores, comparison = ScoreTable(scores_of(measured)), compare.compare(measured)
    logger.info("%s", as_text(compare.table(comparison)))
    return ModelMetrics(search=metrics, evaluation=scores.results, means=scores.means, comparison=comparison)


def candidates(settings: Merge, num_models: int, trials: int) -> list[Candidate]:
    """Methods with equal weights, then each model with twice the weight of the others, then random ones.

    A single trial is the settings as they are.
    """

    def candidate(label: str, **changes: Any) -> Candidate:
        return Candidate(label, settings.model_copy(update=changes))

    if trials == 1:
        return [candidate(settings.method)]
    methods = [settings.method, *(name for name in METHODS_TRIED if name != settings.method)]
    found = [candidate(f"{name}-equal", method=name, weights="equal") for name in methods]
    if METHODS[settings.method].takes_weights:
        for number in range(1, num_models + 1):
            weights = [2.0 if number == other else 1.0 for other in range(1, num_models + 1)]
            found.append(candidate(f"{settings.method}-more-{number}", weights=weights))
        generator = np.random.default_rng(SEED)
        while len(found) < trials:
            drawn = [round(float(value), 4) for value in generator.dirichlet(np.full(num_models, 3.0))]
            label = f"{settings.method}-{','.join(f'{value:g}' for value in drawn)}"
            found.append(candidate(label, weights=drawn))
    return found[:trials]

"""Search for the method and weights that score best on a development set.

All candidates merge the same models, so the Gram matrices of the first merge are cached for the others.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from boom_ray import storage
from boom_ray.artifacts import ModelRecord, staging
from boom_ray.artifacts.contents import ModelMetrics, SearchMetrics
from boom_ray.evaluation import tables
from boom_ray.evaluation.measure import find_tasks, measure, scores_of
from boom_ray.evaluation.protocol import EvaluationProtocol, Subject
from boom_ray.merge.merge_job import GramMatrix
from boom_ray.merge.methods import METHODS
from boom_ray.pipeline.publish import merge_models
from boom_ray.recipe import Merge, MergeMethod
from boom_ray.runs.scores import main_score, mean_scores
from boom_ray.runtime.console import as_text

logger = logging.getLogger(__name__)

METHODS_TRIED: tuple[MergeMethod, ...] = ("multislerp", "karcher", "linear")
SEED = 0  # of the random weights


@dataclass(frozen=True)
class Candidate:
    """One way to merge, and its label in tables."""

    label: str
    settings: Merge


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Attributes:
        record: Record of the published model; its metrics have the scores of all candidates.
        best: Label of the candidate that was published.
        scores: Main score of each candidate, by label.
        grams: Gram matrix of each tensor that differs between the models.
    """

    record: ModelRecord
    best: str
    scores: dict[str, float]
    grams: dict[str, GramMatrix]


def search(
    models: list[str], target: str, base: str | None, settings: Merge, data: str, trials: int
) -> SearchResult:
    """Merge with several methods and weights, and publish the best merge.

    Args:
        models: URIs.
        target: URI of the merged model.
        base: URI of the base model, if task vectors are merged.
        settings: Settings of all candidates except method and weights. Its method with equal weights is the
            first candidate, which the others are compared with.
        data: Directory of tasks to choose by.
        trials: Number of candidates.

    Raises:
        BoomError: as the merge and the evaluation do.
    """
    staging.refuse_existing(target)
    tasks = find_tasks(data)
    tried = candidates(settings, len(models), trials)
    scratch = storage.join(storage.parent_of(target), f".{storage.name_of(target)}.search")
    grams: dict[str, GramMatrix] = {}
    try:
        for number, candidate in enumerate(tried, 1):
            logger.info("search: %d/%d %s", number, len(tried), candidate.label)
            uri = storage.join(scratch, candidate.label)
            _, merged = merge_models(models, uri, base, candidate.settings, grams)
            grams = grams or merged.reusable
        subjects = [Subject(c.label, storage.join(scratch, c.label)) for c in tried]
        results = scores_of(measure(subjects, tasks, EvaluationProtocol()))
        scores = {label: main_score(mean_scores(found)["all"]) for label, found in results.items()}
        best = max(tried, key=lambda candidate: scores[candidate.label])
        metrics = ModelMetrics(search=SearchMetrics(scores=scores, chosen=best.label), evaluation=results)
        record, _ = merge_models(models, target, base, best.settings, grams, metrics)
    finally:
        storage.delete_tree(scratch)
    first = tried[0].label
    logger.info("%s", as_text(tables.score_table(scores)))
    logger.info("best: %s with %.4f; %s has %.4f", best.label, scores[best.label], first, scores[first])
    return SearchResult(record, best.label, scores, grams)


def candidates(settings: Merge, num_models: int, trials: int) -> list[Candidate]:
    """Methods with equal weights, then each model with twice the weight of the others, then random ones."""

    def candidate(label: str, **changes: Any) -> Candidate:
        return Candidate(label, settings.model_copy(update=changes))

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
    return found[: max(trials, 1)]

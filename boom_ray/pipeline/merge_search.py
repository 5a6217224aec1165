"""Which method and weights merge best, by a development set: one pass for the Gram matrices, many merges."""

from dataclasses import dataclass, replace

import numpy as np

from boom_ray import storage
from boom_ray.artifacts import ModelRecord, staging
from boom_ray.artifacts.contents import ModelMetrics, SearchMetrics
from boom_ray.evaluation import tables
from boom_ray.evaluation.measure import find_tasks, measure, scores_of
from boom_ray.evaluation.protocol import EvaluationProtocol, Subject
from boom_ray.merge.actors import MergeSpec
from boom_ray.merge.job import Products
from boom_ray.merge.methods import METHODS
from boom_ray.pipeline.publish import merge_models
from boom_ray.runs.scores import main_score, mean_scores
from boom_ray.runtime.console import console

METHODS_TRIED = ("multislerp", "karcher", "linear")
SEED = 0


@dataclass(frozen=True)
class Candidate:
    """One way to merge, and what tables call it."""

    label: str
    spec: MergeSpec


def search(
    models: list[str], target: str, base: str | None, spec: MergeSpec, data: str, trials: int
) -> tuple[ModelRecord, dict[str, Products]]:
    """Try methods and weights, and publish the best merge.

    Args:
        models: URIs.
        target: URI of the merged model.
        spec: How they are merged, but for method and weights; its method with equal weights is the first
            candidate, which the others are compared with.
        data: Directory of tasks to choose by.
        trials: How many candidates there are.

    Returns:
        The record of the best, whose metrics hold the scores of all, and the Gram matrices.

    Raises:
        BoomError: as the merge and the evaluation do.
    """
    staging.refuse_existing(target)
    tasks = find_tasks(data)
    tried = candidates(spec, len(models), trials)
    scratch = storage.join(storage.parent_of(target), f".{storage.name_of(target)}.search")
    known: dict[str, Products] = {}
    try:
        for number, candidate in enumerate(tried, 1):
            console.print(f"search: {number}/{len(tried)} {candidate.label}")
            place = storage.join(scratch, candidate.label)
            _, merged = merge_models(models, place, base, candidate.spec, known)
            known = known or merged.reusable
        subjects = [Subject(c.label, storage.join(scratch, c.label)) for c in tried]
        results = scores_of(measure(subjects, tasks, EvaluationProtocol()))
        scores = {label: main_score(mean_scores(found)["all"]) for label, found in results.items()}
        best = max(tried, key=lambda candidate: scores[candidate.label])
        metrics = ModelMetrics(search=SearchMetrics(scores=scores, chosen=best.label), evaluation=results)
        record, _ = merge_models(models, target, base, best.spec, known, metrics)
    finally:
        storage.delete_tree(scratch)
    first = tried[0].label
    console.print(tables.score_table(scores))
    console.print(f"best: {best.label} with {scores[best.label]:.4f}; {first} has {scores[first]:.4f}")
    return record, known


def candidates(spec: MergeSpec, num_models: int, trials: int) -> list[Candidate]:
    """Methods with equal weights, then each model with more weight than the rest, then random weights."""
    methods = [spec.method, *(name for name in METHODS_TRIED if name != spec.method)]
    found = [Candidate(f"{name}-equal", replace(spec, method=name, weights="equal")) for name in methods]
    if METHODS[spec.method].takes_weights:
        for number in range(1, num_models + 1):
            weights = [2.0 if number == other else 1.0 for other in range(1, num_models + 1)]
            found.append(Candidate(f"{spec.method}-more-{number}", replace(spec, weights=weights)))
        generator = np.random.default_rng(SEED)
        while len(found) < trials:
            drawn = [round(float(value), 4) for value in generator.dirichlet(np.full(num_models, 3.0))]
            label = f"{spec.method}-{','.join(f'{value:g}' for value in drawn)}"
            found.append(Candidate(label, replace(spec, weights=drawn)))
    return found[: max(trials, 1)]

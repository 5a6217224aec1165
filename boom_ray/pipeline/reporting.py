"""What is reported of a merge that was chosen or learned: its scores on other tasks."""

import logging

from boom_ray import storage
from boom_ray.artifacts.contents import ModelMetrics
from boom_ray.artifacts.staging import Stage
from boom_ray.evaluation import compare
from boom_ray.evaluation.measure import find_tasks, measure, scores_of
from boom_ray.evaluation.protocol import EvaluationProtocol, Subject
from boom_ray.pipeline.merge_choice import Candidate
from boom_ray.pipeline.publish import merge_models
from boom_ray.runs.scores import ScoreTable
from boom_ray.runtime.console import as_text

logger = logging.getLogger(__name__)


def compare_on_test(
    stage: Stage,
    models: list[str],
    base: str | None,
    plain: Candidate,
    test: str | None,
    protocol: EvaluationProtocol,
    scratch: str,
) -> ModelMetrics:
    """Measure a merge and the merge without a choice, and log the interval of their difference.

    Args:
        stage: With the merge.
        models: The URIs of what it merges.
        base: URI of the base model, if task vectors are merged.
        plain: The merge without a choice.
        test: Directory of the tasks; without it nothing is measured.
        scratch: URI of a directory, in which `plain` is merged.
    """
    if test is None:
        return ModelMetrics()
    uri = storage.join(scratch, plain.label)
    storage.delete_tree(uri)  # of a process that was killed
    record, _ = merge_models(models, uri, base, plain.settings)
    subjects = [
        Subject("merged", stage.uri, digest=stage.flush()),
        Subject(plain.label, uri, digest=record.digest),
    ]
    measured = measure(subjects, find_tasks(test), protocol)
    scores, comparison = ScoreTable(scores_of(measured)), compare.compare(measured)
    logger.info("%s", as_text(compare.table(comparison)))
    return ModelMetrics(evaluation=scores.results, means=scores.means, comparison=comparison)

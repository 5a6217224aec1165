"""`boom-ray merge` with a choice on development tasks: of the scale, or of all coefficients (`--search`).

Candidates of a search are combined in memory, and only the chosen merge is published. What is reported is
measured on other tasks, after the choice.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import ray

from boom_ray import artifacts, storage
from boom_ray.artifacts import ModelRecord, staging
from boom_ray.artifacts.contents import ModelMetrics, SearchMetrics
from boom_ray.artifacts.staging import Stage
from boom_ray.errors import InputError
from boom_ray.evaluation.choice import mean_score
from boom_ray.evaluation.disjoint import check_disjoint
from boom_ray.evaluation.measure import find_tasks
from boom_ray.evaluation.protocol import EvaluationProtocol, Measurement, Subject
from boom_ray.evaluation.variant_task import measure_variants
from boom_ray.merge.check_inputs import check_inputs
from boom_ray.merge.driver import readable
from boom_ray.merge.merge_job import GramMatrix
from boom_ray.merge.method_coefficients import group_grams, method_coefficients
from boom_ray.merge.methods import METHODS
from boom_ray.merge.placement import placements
from boom_ray.merge.settings import check_settings
from boom_ray.model import directory
from boom_ray.pipeline.candidate_task import CandidateTask, tensor_grams
from boom_ray.pipeline.merge_choice import Candidate, Development, choose, choose_scale, scratch_of
from boom_ray.pipeline.publish import merge_models
from boom_ray.pipeline.reporting import compare_on_test
from boom_ray.pipeline.search_space import Point, SearchSpace, optimize
from boom_ray.recipe import Merge, MergeMethod
from boom_ray.recipe.execution import EvaluateExecution
from boom_ray.runtime.cluster import result_of

logger = logging.getLogger(__name__)

METHODS_TRIED: tuple[MergeMethod, ...] = ("multislerp", "karcher", "linear")


@dataclass(frozen=True)
class SearchRequest:
    """What to choose, and by which tasks.

    Attributes:
        development: Directory of the tasks to choose by.
        test: Directory of tasks that the choice is measured on, compared with the merge without a choice;
            None to measure nothing.
        trials: The most merges that a search measures; None to choose the scale alone.
        execution: Device and resources of the processes that measure.
    """

    development: str
    test: str | None = None
    trials: int | None = None
    execution: EvaluateExecution = field(default_factory=EvaluateExecution)


@dataclass(frozen=True)
class SearchResult:
    """A finished choice.

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
        settings: Of the merge without a choice; a search starts with it and weights that are equal.

    Raises:
        InputError: if the development and the test tasks share queries, or a method without coefficients is
            to be searched.
        BoomError: as the merge and the evaluation do.
    """
    staging.refuse_existing(target)
    check_settings(settings, len(models), base)
    find_tasks(request.development)
    if request.test:
        check_disjoint(request.development, request.test)
    plain = settings.model_copy(update={"scale": 1.0 if settings.scale == "auto" else settings.scale})
    with scratch_of(target) as scratch:
        protocol = EvaluationProtocol(execution=request.execution)
        development = Development(request.development, protocol, storage.join(scratch, "measurements"))
        if request.trials is None:
            assert base is not None  # `Merge` allows scales of task vectors only
            first = Candidate(f"{plain.method} x1", plain)
            chosen, metrics = choose_scale(models, base, settings, development, scratch)
        else:
            merges = MergeSearch(models, base, plain, development)
            first = merges.equal(plain.method)
            chosen, metrics = merges.run(request.trials)

        def measured(stage: Stage) -> ModelMetrics:
            found = compare_on_test(stage, models, base, first, request.test, protocol, scratch)
            return found.model_copy(update={"search": metrics})

        record, merged = merge_models(models, target, base, chosen, measured=measured)
    return SearchResult(record, merged.grams)


class MergeSearch:
    """Candidates for the merge of some models, measured on development tasks.

    Methods with equal weights come first. Then CMA-ES varies the coefficients of the best of them per group
    of layers; see `search_space`.

    Args:
        models: URIs.
        base: URI of the base model; None to combine whole weights.
        settings: Of all candidates except method and weights.
    """

    def __init__(
        self, models: list[str], base: str | None, settings: Merge, development: Development
    ) -> None:
        if METHODS[settings.method].coefficients is None:
            raise InputError(
                f"{settings.method} decides by element and has no coefficients to search. Use another "
                "method, or choose its scale with scale auto"
            )
        base = base if settings.space == "deltas" else None
        uris = [*models, base] if base else models
        self.models, self.base, self.settings, self.development = models, base, settings, development
        self.inputs = check_inputs([readable(uri) for uri in models], base and readable(base)).models
        task: Any = ray.remote(num_cpus=1, **placements(uris, 1)[0])(tensor_grams)
        self.grams: dict[str, GramMatrix] = result_of(task.remote(models, base))
        digest = artifacts.fingerprint([directory.identify(uri).digest for uri in uris])
        self.subject = Subject("merge", models[0], digest=digest)
        self.tasks = find_tasks(development.uri)
        self.candidates: list[Candidate] = []
        self.measured: dict[str, dict[str, Measurement]] = {}

    def equal(self, method: MergeMethod) -> Candidate:
        """A method with equal weights."""
        changes = {"method": method, "weights": "equal"}
        return Candidate(f"{method}-equal", self.settings.model_copy(update=changes))

    def run(self, trials: int) -> tuple[Merge, SearchMetrics]:
        """Measure at most `trials` candidates, and choose one.

        Returns:
            Its settings, and the scores of all for the record.

        Raises:
            BoomError: as the evaluation does.
        """
        methods = dict.fromkeys((self.settings.method, *METHODS_TRIED))
        scores = self._measure([self.equal(method) for method in methods])
        best = self.candidates[int(np.argmax(scores))].settings
        start = method_coefficients(best, self.inputs, group_grams(self.grams))
        space = SearchSpace(start, sum_to_one=self.base is None)
        optimize(space, trials - len(methods), partial(self._measure_points, space))
        return choose(self.candidates, self.measured, self.development)

    def _measure_points(self, space: SearchSpace, points: Sequence[Point]) -> list[float]:
        # `linear` with coefficients as weights, which are divided by their sum for whole weights only.
        changes = {"method": "linear", "normalize": None if space.sum_to_one else False, "scale": 1.0}
        first = len(self.candidates) + 1
        return self._measure(
            [
                Candidate(
                    f"search-{number}",
                    self.settings.model_copy(update={**changes, "weights": space.coefficients(point)}),
                    space.distance(point),
                )
                for number, point in enumerate(points, first)
            ]
        )

    def _measure(self, candidates: list[Candidate]) -> list[float]:
        """The mean score of each."""
        protocol, cache = self.development.protocol, self.development.cache
        variants = {candidate.label: self._variant(candidate) for candidate in candidates}
        found = measure_variants(self.subject, variants, protocol, cache)
        self.candidates += candidates
        self.measured |= found
        scores = [mean_score(found[candidate.label]) for candidate in candidates]
        for candidate, score in zip(candidates, scores, strict=True):
            logger.info("%s: %.4f", candidate.label, score)
        return scores

    def _variant(self, candidate: Candidate) -> list[CandidateTask]:
        """The development tasks with a candidate."""
        coefficients = method_coefficients(candidate.settings, self.inputs, self.grams)
        return [
            CandidateTask(f"{task.name} {candidate.label}", task, self.models, self.base, coefficients)
            for task in self.tasks
        ]

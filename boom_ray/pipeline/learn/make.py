"""A merge with learned coefficients: they are learned on a worker, and merged and published as any other."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import ray

from boom_ray import storage
from boom_ray.artifacts import ModelRecord, staging
from boom_ray.artifacts.contents import LearningMetrics, ModelMetrics
from boom_ray.artifacts.staging import Stage
from boom_ray.errors import InputError
from boom_ray.evaluation.disjoint import check_disjoint
from boom_ray.evaluation.protocol import EvaluationProtocol
from boom_ray.evaluation.slots import Slots
from boom_ray.merge.actors import MergeOutput
from boom_ray.merge.check_inputs import check_inputs
from boom_ray.merge.methods import METHODS
from boom_ray.merge.placement import placements
from boom_ray.merge.settings import check_settings
from boom_ray.pipeline.merge_choice import Candidate, scratch_of
from boom_ray.pipeline.publish import merge_models
from boom_ray.pipeline.reporting import compare_on_test
from boom_ray.recipe import Merge
from boom_ray.recipe.execution import EvaluateExecution
from boom_ray.runtime.cluster import result_of
from boom_ray.runtime.progress import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearnOptions:
    """How coefficients are learned.

    Attributes:
        data: Directory of the development set, whose retrieval tasks are used.
        num_steps: Optimizer steps.
        test: Directory of tasks that the learned merge is measured on, compared with the start; None to
            measure nothing.
        execution: Device and resources of the process that learns, and of those that measure.
    """

    data: str
    num_steps: int
    test: str | None = None
    execution: EvaluateExecution = field(default_factory=EvaluateExecution)


def merge_learned(
    models: list[str], target: str, base: str | None, settings: Merge, options: LearnOptions
) -> tuple[ModelRecord, MergeOutput]:
    """Learn the coefficients of a merge, one per model and group of layers, and publish that merge.

    It is the merge `linear` with the learned coefficients as weights, so that it can be repeated without
    learning.

    Args:
        models: URIs.
        target: URI of the merged model.
        base: URI of the model they were trained from.
        settings: The method whose coefficients are the start.

    Raises:
        InputError: if the models cannot be merged, or the development set has no retrieval task, or shares
            queries with the test tasks.
        BoomError: as the merge does.
    """
    staging.refuse_existing(target)
    check_settings(settings, len(models), base)
    method = METHODS[settings.method]
    if settings.space == "weights" or method.coefficients is None or isinstance(settings.weights, dict):
        raise InputError(
            "coefficients of task vectors are learned, from those of a method: give base_model, weights that "
            "are the same for all layers, and another method than "
            + ", ".join(name for name, other in METHODS.items() if other.coefficients is None)
        )
    assert base is not None, "checked with the settings"
    if options.test:
        check_disjoint(options.data, options.test)
    learned = _learn(models, base, settings, options)
    changes = {"method": "linear", "normalize": False, "scale": 1.0, "weights": learned.coefficients}
    protocol, plain = EvaluationProtocol(execution=options.execution), Candidate(settings.method, settings)
    with scratch_of(target) as scratch:

        def measured(stage: Stage) -> ModelMetrics:
            found = compare_on_test(stage, models, base, plain, options.test, protocol, scratch)
            return found.model_copy(update={"learning": learned.metrics})

        return merge_models(models, target, base, settings.model_copy(update=changes), measured=measured)


@dataclass(frozen=True)
class LearnedMerge:
    """Coefficients by group of layers, and the account of how they were learned."""

    coefficients: dict[str, list[float]]
    metrics: LearningMetrics


def _learn(models: list[str], base: str, settings: Merge, options: LearnOptions) -> LearnedMerge:
    """Learn on a worker, and show its progress."""
    slots = Slots.of(options.execution, 1)
    where = (
        slots.options
        | placements([*models, base, options.data], 1, options.execution.start_timeout_s, slots.reserved)[0]
    )
    task: Any = ray.remote(num_returns="streaming", max_retries=0, **where)(_steps)
    stream = task.remote(models, base, settings, options, slots.threads)
    try:
        with Progress() as progress:
            found = result_of(next(stream))
            while not isinstance(found, LearnedMerge):
                step, loss = found
                progress.update("learn", step, options.num_steps, f"loss {loss:.4f}")
                found = result_of(next(stream))
    except BaseException:
        ray.cancel(stream)
        raise
    before, after = found.metrics.loss_before, found.metrics.loss_after
    logger.info("learned on %d queries: loss %.4f, was %.4f", found.metrics.queries, after, before)
    return found


def _steps(
    models: list[str], base: str, settings: Merge, options: LearnOptions, num_threads: int
) -> Iterator[tuple[int, float] | LearnedMerge]:
    """Number and loss of each step, and in the end the result. Runs on a worker."""
    from boom_ray.model import directory
    from boom_ray.model.inference import threads
    from boom_ray.pipeline.learn.learner import STRENGTH, Learned, Learner
    from boom_ray.pipeline.learn.pairs import DevelopmentSet

    development = DevelopmentSet.read(options.data)
    # They are read twice in every step: those of an object store are copied.
    *models, base = (
        uri if storage.is_local(uri) else storage.local_directory(uri) for uri in [*models, base]
    )
    inputs = check_inputs(models, base)
    device = "cuda" if options.execution.use_gpu else "cpu"
    with ExitStack() as stack:
        stack.enter_context(threads(num_threads))
        encoder = directory.load_encoder(storage.local_directory(inputs.directory), device=device)
        learner = Learner(inputs, settings, encoder, development, options.num_steps)
        stack.enter_context(closing(learner.weights))
        for found in learner.run():
            if not isinstance(found, Learned):
                yield found
                continue
            metrics = LearningMetrics(
                tasks=development.revisions,
                queries=development.num_queries,
                steps=options.num_steps,
                strength=STRENGTH,
                start=found.start,
                loss_before=found.loss_before,
                loss_after=found.loss_after,
            )
            yield LearnedMerge(found.coefficients, metrics)

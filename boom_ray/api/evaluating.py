"""Evaluate models."""

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from boom_ray import storage
from boom_ray.api import arguments
from boom_ray.api.arguments import ModelLike, PathLike
from boom_ray.api.results import EvaluationResult
from boom_ray.errors import InputError
from boom_ray.recipe import QueryTemplate
from boom_ray.runs.scores import MAIN_SCORE, ScoreTable
from boom_ray.runtime.progress import ProgressCallback, reported_to


def evaluate(
    models: ModelLike | Sequence[ModelLike],
    data: PathLike | None = None,
    *,
    mteb: str | Sequence[str] = (),
    results: PathLike = "~/boom-ray/mteb",
    name: str | None = None,
    query_template: str | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    batch_size: int = 32,
    progress: ProgressCallback | None = None,
) -> EvaluationResult:
    """Measure models on local tasks, on tasks of mteb, or on both.

    Local tasks are measured by mteb as well, unless all are retrieval tasks in BEIR's format.

    Args:
        models: One model or several.
        data: A directory with a local task, or with directories of them.
        mteb: Names of benchmarks or tasks of mteb.
        results: Directory of mteb's result files; what they contain is not measured again.
        name: `organization/name` of the model in those files; for one model.
        query_template: Text of queries for mteb, from `{instruction}`, the task's own, and `{query}`.
        num_cpus: CPUs of each task of mteb.
        num_gpus: GPUs of each task of mteb.
        batch_size: Texts in one forward pass, with mteb.
        progress: Receives every `ProgressEvent`; by default progress is printed.

    Returns:
        The scores, and the tasks of mteb that could not be measured (`problems`).

    Raises:
        InputError: if an argument is not valid, or mteb is needed and not installed.
        NotFoundError: if a model does not exist.

    Example:
        >>> boom.evaluate(["base", "runs/quickstart"], "eval").to_frame()
    """
    from boom_ray.evaluation import local_tasks
    from boom_ray.runtime import cluster

    names = [mteb] if isinstance(mteb, str) else list(mteb)
    found = local_tasks.find(arguments.path(data)) if data is not None else []
    if not found and not names:
        raise InputError("evaluate: no tasks. Give data, a directory of tasks, or mteb, names of its tasks")
    subjects = _labelled(models)
    _check_template(query_template)
    arguments.at_least(1, batch_size=batch_size)
    cluster.connect()
    with reported_to(progress):
        if not names and all(task.type == "Retrieval" for task in found):
            if name or query_template:
                raise InputError("name and query_template need mteb, and no task here is measured by mteb")
            return _retrieval(subjects, arguments.path(data or ""))
        settings = (query_template, num_cpus, num_gpus, batch_size)
        return _through_mteb(subjects, found, names, name, settings, arguments.path(results))


def _labelled(models: ModelLike | Sequence[ModelLike]) -> dict[str, str]:
    """URIs by label: the names of the models, or their URIs if names repeat."""
    uris = arguments.model_uris(models)
    names = [storage.name_of(uri) for uri in uris]
    if len(set(uris)) < len(uris):
        raise InputError(f"models: {', '.join(uris)}: a model is given more than once")
    return dict(zip(names if len(set(names)) == len(names) else uris, uris, strict=True))


def _check_template(query_template: str | None) -> None:
    try:
        TypeAdapter(QueryTemplate | None).validate_python(query_template)
    except ValidationError as error:
        raise InputError(
            f"query_template: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        ) from None


def _retrieval(subjects: dict[str, str], data: str) -> EvaluationResult:
    from boom_ray.evaluation.measure import Protocol, Subject, evaluate

    scores = evaluate([Subject(label, uri) for label, uri in subjects.items()], Protocol(data))
    return EvaluationResult(ScoreTable(scores), [], None)


def _through_mteb(
    models: dict[str, str], found: list[Any], names: list[str], name: str | None, settings: Any, results: str
) -> EvaluationResult:
    """The local tasks and those named, measured by mteb."""
    try:
        from boom_ray.evaluation import mteb_run, mteb_tasks
    except ModuleNotFoundError as error:
        if error.name != "mteb":
            raise
        raise InputError("mteb is not installed. Run: pip install 'boom-ray[mteb]'") from None
    if name and (len(models) > 1 or name.count("/") != 1):
        raise InputError(f"name: got {name!r}; expected organization/name, for one model at a time")
    chosen = {task.name: mteb_tasks.local(task) for task in found}
    chosen |= {f"{task.metadata.type}/{task.metadata.name}": task for task in mteb_tasks.named(tuple(names))}
    subjects = [mteb_run.identified(uri, label, name) for label, uri in models.items()]
    measured, problems = mteb_run.measure(subjects, chosen, mteb_run.Protocol(*settings), results)
    scores = {
        label: {task: {MAIN_SCORE: score} for task, score in tasks.items()}
        for label, tasks in measured.items()
    }
    return EvaluationResult(ScoreTable(scores), problems, results)

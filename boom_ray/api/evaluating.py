"""Evaluate models."""

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from boom_ray import storage
from boom_ray.api import arguments
from boom_ray.api.arguments import ModelLike, PathLike
from boom_ray.api.results import EvaluationResult
from boom_ray.errors import InputError
from boom_ray.recipe.execution import EvaluateExecution
from boom_ray.recipe.fields import QueryTemplate
from boom_ray.runs.scores import ScoreTable
from boom_ray.runtime import demand, devices
from boom_ray.runtime.devices import Device
from boom_ray.runtime.progress import ProgressCallback, reported_to


def evaluate(
    models: ModelLike | Sequence[ModelLike],
    data: PathLike | None = None,
    *,
    mteb: str | Sequence[str] = (),
    results: PathLike = "~/boom-ray/mteb",
    name: str | None = None,
    query_template: str | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    device: Device = "auto",
    batch_size: int = 32,
    start_timeout_s: float = demand.TIMEOUT_S,
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
        num_cpus: CPUs of each model; by default those of the cluster are divided.
        num_gpus: GPUs of each model, if they run on GPUs; one by default.
        device: Device of the models; `auto`: GPUs if the cluster has any, or its autoscaler may start some.
        batch_size: Texts in one forward pass, with mteb.
        start_timeout_s: Seconds to wait until the cluster has capacity for one model.
        progress: Receives every `ProgressEvent`; by default progress is printed.

    Returns:
        The scores, and the tasks of mteb that could not be measured (`problems`).

    Raises:
        InputError: if an argument is not valid, mteb is needed and not installed, or the merge of a model was
            chosen on one of the tasks.
        NotFoundError: if a model does not exist.
        ClusterError: if the cluster has no capacity for a model, or its nodes lack the device.

    Example:
        >>> boom.evaluate(["base", "runs/quickstart"], "eval").to_frame()
    """
    from boom_ray.evaluation import local_tasks
    from boom_ray.evaluation.development import refuse_development_tasks
    from boom_ray.evaluation.measure import measure, scores_of
    from boom_ray.evaluation.protocol import EvaluationProtocol, Subject
    from boom_ray.runtime import cluster

    names = [mteb] if isinstance(mteb, str) else list(mteb)
    found = local_tasks.find(arguments.path(data)) if data is not None else []
    if not found and not names:
        raise InputError("evaluate: no tasks. Give data, a directory of tasks, or mteb, names of its tasks")
    uris, by_mteb = _labelled(models), bool(names) or any(task.type != "Retrieval" for task in found)
    _check_options(by_mteb, name, len(uris), query_template)
    arguments.at_least(1, batch_size=batch_size)
    if num_gpus is not None and (num_gpus <= 0 or device == "cpu"):
        raise InputError(f"num_gpus: got {num_gpus:g} with device {device}; allowed: above 0, on GPUs")
    refuse_development_tasks(list(uris.values()), found)
    cluster.connect()
    resources = {"CPU": num_cpus, "GPU": num_gpus}
    execution = EvaluateExecution(
        use_gpu=num_gpus is not None or devices.resolve(device) == "cuda",
        resources_per_model={key: amount for key, amount in resources.items() if amount is not None},
        start_timeout_s=start_timeout_s,
    )
    protocol = EvaluationProtocol(query_template=query_template, batch_size=batch_size, execution=execution)
    subjects = [Subject(label, uri, hub_name=name) for label, uri in uris.items()]
    tasks = _mteb_tasks(found, names) if by_mteb else _local_tasks(found)
    cache, problems = arguments.path(results) if by_mteb else None, list[str]()
    with reported_to(progress):
        measured = measure(subjects, tasks, protocol, cache, problems if by_mteb else None)
    counts = {name: found.counts for name, found in next(iter(measured.values())).items() if found.counts}
    return EvaluationResult(ScoreTable(scores_of(measured)), problems, cache, counts)


def _labelled(models: ModelLike | Sequence[ModelLike]) -> dict[str, str]:
    """URIs by label: the names of the models, or their URIs if names repeat."""
    uris = arguments.model_uris(models)
    names = [storage.name_of(uri) for uri in uris]
    if len(set(uris)) < len(uris):
        raise InputError(f"models: {', '.join(uris)}: a model is given more than once")
    return dict(zip(names if len(set(names)) == len(names) else uris, uris, strict=True))


def _check_options(by_mteb: bool, name: str | None, num_models: int, query_template: str | None) -> None:
    if not by_mteb and (name or query_template):
        raise InputError("name and query_template need mteb, and no task here is measured by mteb")
    if name and (num_models > 1 or name.count("/") != 1):
        raise InputError(f"name: got {name!r}; expected organization/name, for one model at a time")
    try:
        TypeAdapter(QueryTemplate | None).validate_python(query_template)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"query_template: {message}") from None


def _local_tasks(found: list[Any]) -> list[Any]:
    from boom_ray.evaluation.local_run import LocalEvaluationTask

    return [LocalEvaluationTask(task.name, task) for task in found]


def _mteb_tasks(found: list[Any], names: list[str]) -> list[Any]:
    """The local tasks and those named, measured by mteb."""
    try:
        from boom_ray.evaluation.mteb_run import tasks_named, through_mteb
    except ModuleNotFoundError as error:
        if error.name != "mteb":
            raise
        raise InputError("mteb is not installed. Run: pip install 'boom-ray[mteb]'") from None
    return [*through_mteb(found), *tasks_named(tuple(names))]

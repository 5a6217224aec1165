"""The measurement of models on tasks of all types, with the results of earlier measurements.

Example:
    >>> tasks = find_tasks("s3://bucket/eval")
    >>> measure([Subject("v0001", uri)], tasks, EvaluationProtocol(), "s3://bucket/cache")["v0001"]
    {'in_domain/numpy': Measurement(scores={'ndcg@10': 0.71, ...}, queries={...}), ...}
"""

import importlib.util
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from boom_ray import storage
from boom_ray.errors import BoomError, InputError
from boom_ray.evaluation import local_tasks, spread
from boom_ray.evaluation.local_run import LocalEvaluationTask
from boom_ray.evaluation.protocol import EvaluationProtocol, EvaluationTask, Measurements, Subject
from boom_ray.evaluation.spread import Job, Result
from boom_ray.model import directory
from boom_ray.runs.scores import Scores
from boom_ray.runtime.progress import Progress


def find_tasks(data: str) -> list[LocalEvaluationTask]:
    """Every task at or below a directory, named by its path relative to it.

    Raises:
        NotFoundError: if there is no task.
        InputError: if a task has an unknown format, or needs mteb, which is not installed.
    """
    found = local_tasks.find(data)
    needing = [task.name for task in found if task.type != "Retrieval"]
    if needing and importlib.util.find_spec("mteb") is None:
        raise InputError(
            f"{data}: {', '.join(needing)}: these tasks need mteb, which is not installed. Run here and on "
            "the cluster's nodes: pip install 'boom-ray[mteb]'"
        )
    return [LocalEvaluationTask(task.name, task) for task in found]


def measure(
    subjects: Sequence[Subject],
    tasks: Sequence[EvaluationTask[Any]],
    protocol: EvaluationProtocol,
    cache: str | None = None,
    problems: list[str] | None = None,
) -> Measurements:
    """Measure every model on every task.

    Args:
        tasks: Local tasks (`find_tasks`), mteb's (`mteb_run.tasks_named`), or both; names must differ.
        cache: URI of a directory of results. Pairs of model and task with a cached result are not measured
            again; every result is stored when it arrives, so that a rerun continues.
        problems: If given, a pair that fails adds a message to this list and the others continue; tasks
            without a result for every model are left out.

    Returns:
        label -> task -> measurement, in the order of `subjects` and `tasks`.

    Raises:
        BoomError: if a model or a task cannot be read and `problems` is None.
    """
    done: Measurements = {subject.label: {} for subject in subjects}
    missing: dict[Subject, list[Job]] = {}
    for subject in map(_identified, subjects):
        for task in tasks:
            cached = task.read_result(cache, subject, protocol) if cache else None
            if cached is not None and task.is_complete(cached):
                done[subject.label][task.name] = task.measurement(cached)
            else:
                missing.setdefault(subject, []).append((task, cached))
    failures: dict[str, list[str]] = {}
    with closing(_reported(missing, protocol)) as results:
        for subject, task, result in results:
            if isinstance(result, BoomError):
                if problems is None:
                    raise result
                # Many tasks fail for one reason, such as an unreachable hub: report the reason once.
                failures.setdefault(str(result), []).append(f"{subject.label} on {task.name}")
                continue
            if cache:
                task.write_result(cache, subject, protocol, result)
            done[subject.label][task.name] = task.measurement(result)
    if problems is not None:
        problems += [f"{', '.join(pairs)}: {reason}" for reason, pairs in failures.items()]
    complete = [task.name for task in tasks if all(task.name in measured for measured in done.values())]
    return {label: {name: measured[name] for name in complete} for label, measured in done.items()}


def scores_of(measurements: Measurements) -> dict[str, Scores]:
    """The scores without those of single queries: label -> task -> metric -> value."""
    return {
        label: {task: measurement.scores for task, measurement in tasks.items()}
        for label, tasks in measurements.items()
    }


def _identified(subject: Subject) -> Subject:
    """The subject with its digest and its name in mteb's result files."""
    if subject.digest:
        return replace(subject, hub_name=subject.hub_name or f"local/{storage.name_of(subject.uri)}")
    identity = directory.identify(subject.uri)
    if storage.is_hub(subject.uri):
        hub_name = storage.hub_name(subject.uri)[0]
    else:
        hub_name = f"local/{identity.name}-{identity.version}"
    return replace(subject, digest=identity.digest, hub_name=subject.hub_name or hub_name)


def _reported(missing: dict[Subject, list[Job]], protocol: EvaluationProtocol) -> Generator[Result]:
    """Measure what is missing, and report each result once the caller has taken it."""
    total = sum(map(len, missing.values()))
    with Progress() as progress, closing(spread.measured(missing, protocol)) as results:
        for number, (subject, task, result) in enumerate(results, 1):
            yield subject, task, result
            progress.update("evaluate", number, total, f"{subject.label}, {task.name}")

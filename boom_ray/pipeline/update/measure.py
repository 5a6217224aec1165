"""Parent, update and child measured on old and new tasks, and the requirements for publishing the child.

Old tasks are those of the recipe, and those that came with each earlier update, prefixed with its version.
"""

import logging
from dataclasses import replace

from boom_ray.artifacts.contents import UpdateMetrics
from boom_ray.errors import BoomError, InputError
from boom_ray.evaluation import compare, tables
from boom_ray.evaluation.measure import find_tasks, measure, scores_of
from boom_ray.evaluation.protocol import EvaluationProtocol, Measurements, Subject
from boom_ray.recipe import Recipe
from boom_ray.runs.layout import Layout
from boom_ray.runs.scores import ScoreTable
from boom_ray.runs.updates import UpdateRequest, ancestors
from boom_ray.runtime.console import as_text

TaskSets = dict[str, dict[str, str]]
SMALLEST_MEAN = 1e-6  # avoids a division by zero where the parent's mean is zero
logger = logging.getLogger(__name__)


def task_sets(recipe: Recipe, request: UpdateRequest) -> TaskSets:
    """The tasks that the models of an update are measured on, found before anything is trained.

    Returns:
        `old` and `new`, as far as there are such tasks: directory -> prefix of the names of its tasks.

    Raises:
        InputError: if a directory holds no tasks, or there is none for a requirement.
    """
    old = {recipe.evaluate.data: ""} if recipe.evaluate.data else {}
    for version, earlier in ancestors(recipe.root, str(request.parent)):
        if earlier.new_evaluation and earlier.new_evaluation != request.new_evaluation:
            old.setdefault(earlier.new_evaluation, f"{version}/")
    new = {request.new_evaluation: ""} if request.new_evaluation else {}
    found = {kind: directories for kind, directories in (("old", old), ("new", new)) if directories}
    for directories in found.values():
        for data in directories:
            find_tasks(data)
    for name in request.requirements:
        if name.removesuffix("_mean") not in found:
            remedy = "evaluate.data in the recipe" if name == "old_mean" else "new_evaluation"
            raise InputError(f"requirement {name}: there are no tasks to measure it on. Set {remedy}")
    return found


def measure_update(recipe: Recipe, sets: TaskSets, models: list[str], child: Subject) -> UpdateMetrics:
    """Measure all three models, and compare child and parent.

    Args:
        models: URIs of the parent and of the update's own model.
    """
    subjects = [*map(Subject, ("parent", "update"), models), child]
    metrics = UpdateMetrics()
    for kind, directories in sets.items():
        measured = _measured(recipe, subjects, directories)
        scores = scores_of(measured)
        logger.info("%s", as_text(tables.terminal_table(scores)))
        comparison = compare.compare({label: measured[label] for label in ("child", "parent")})
        mean = comparison.means["all"]
        change = 100 * (mean.ours - mean.theirs) / max(abs(mean.theirs), SMALLEST_MEAN)
        logger.info("%s_mean: %.4f -> %.4f (%+.2f %%)", kind, mean.theirs, mean.ours, change)
        metrics = UpdateMetrics(
            scores={**metrics.scores, kind: ScoreTable(scores).results},
            change={**metrics.change, f"{kind}_mean": change},
            comparisons={**metrics.comparisons, kind: comparison},
        )
    return metrics


def _measured(recipe: Recipe, subjects: list[Subject], directories: dict[str, str]) -> Measurements:
    """Measure the models on the tasks of all directories, named with the prefix of their directory."""
    protocol, cache = EvaluationProtocol.of(recipe), Layout(recipe.root).measurements
    tasks = [
        replace(task, name=prefix + task.name)
        for data, prefix in directories.items()
        for task in find_tasks(data)
    ]
    return measure(subjects, tasks, protocol, cache)


def require(request: UpdateRequest, change: dict[str, float]) -> None:
    """Refuse a child that is worse than required.

    Args:
        change: Relative change of each mean, in percent.

    Raises:
        BoomError: naming every mean that is.
    """
    unmet = [
        f"{name}: {change[name]:+.2f} %, required {least:+g} %"
        for name, least in request.requirements.items()
        if change[name] < least
    ]
    if unmet:
        raise BoomError.of(
            unmet, f"the child of {request.parent} is worse than required and is not published:"
        )

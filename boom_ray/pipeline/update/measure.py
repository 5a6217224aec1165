"""Parent, update and child on old and new tasks; and whether the child is good enough to be published.

Old are the tasks of the recipe, and those that came with each update before this one, under its version.
"""

from dataclasses import asdict, replace
from typing import Any

from boom_ray import storage
from boom_ray.errors import BoomError
from boom_ray.evaluation import compare, tables
from boom_ray.evaluation.measure import find_tasks, scores_of
from boom_ray.evaluation.measure import measure as measure_models
from boom_ray.evaluation.protocol import EvaluationProtocol, Measurements, Subject
from boom_ray.model import directory
from boom_ray.pipeline.update.request import Request, ancestors
from boom_ray.recipe import Recipe
from boom_ray.runtime.console import console

Tasks = dict[str, dict[str, str]]
SMALLEST_MEAN = 1e-6  # that a change is told in percent of


def tasks_of(recipe: Recipe, request: Request) -> Tasks:
    """What the models of an update are measured on, found before anything is trained.

    Returns:
        `old` and `new`, as far as there are such tasks: a directory -> what comes before the names of its
        tasks.

    Raises:
        BoomError: if there are no tasks in one of them, or none for a requirement.
    """
    old = {recipe.evaluate.data: ""} if recipe.evaluate.data else {}
    for version, earlier in ancestors(recipe.root, str(request.parent)):
        if earlier.new_evaluation and earlier.new_evaluation != request.new_evaluation:
            old.setdefault(earlier.new_evaluation, f"{version}/")
    new = {request.new_evaluation: ""} if request.new_evaluation else {}
    found = {kind: places for kind, places in (("old", old), ("new", new)) if places}
    for places in found.values():
        for data in places:
            find_tasks(data)
    for name, _ in request.requirements:
        if name.removesuffix("_mean") not in found:
            what = "evaluate.data in the recipe" if name == "old_mean" else "--new-evaluation DIR"
            raise BoomError(f"--require {name}: nothing to measure it on. Give {what}")
    return found


def measure(recipe: Recipe, tasks: Tasks, models: list[str], child: Subject) -> dict[str, Any]:
    """Measure all three models, and say how the child's means changed.

    Args:
        models: URIs of the parent and of the update's own model.

    Returns:
        `old` and `new`: label -> task -> metric -> value; `change` of the means in percent; `comparison`.
    """
    subjects = [*map(Subject, ("parent", "update"), models), child]
    metrics: dict[str, Any] = {"change": {}, "comparison": {}}
    for kind, places in tasks.items():
        measured = _measured(recipe, subjects, places)
        results = metrics[kind] = scores_of(measured)
        console.print(tables.terminal_table(results))
        changed = compare.compare({one: measured[one] for one in ("child", "parent")})
        metrics["comparison"][kind] = asdict(changed)
        whole = changed.means["all"]
        change = 100 * (whole.ours - whole.theirs) / max(abs(whole.theirs), SMALLEST_MEAN)
        metrics["change"][f"{kind}_mean"] = change
        console.print(f"{kind}_mean: {whole.theirs:.4f} -> {whole.ours:.4f} ({change:+.2f} %)")
    return metrics


def _measured(recipe: Recipe, subjects: list[Subject], places: dict[str, str]) -> Measurements:
    """Measure the models on the tasks of all directories, named with the prefix of their directory."""
    prompt, cache = directory.prompts_of(recipe.data)["query"], storage.join(recipe.root, "evaluation")
    protocol = EvaluationProtocol(query_prompt=prompt, max_length=recipe.evaluate.max_length)
    tasks = [
        replace(task, name=prefix + task.name) for data, prefix in places.items() for task in find_tasks(data)
    ]
    return measure_models(subjects, tasks, protocol, cache)


def require(request: Request, change: dict[str, float]) -> None:
    """Refuse a child that is worse than required.

    Args:
        change: Of each mean, in percent.

    Raises:
        BoomError: naming every mean that is.
    """
    unmet = [
        f"{name}: {change[name]:+.2f} %, required {least:+g} %"
        for name, least in request.requirements
        if change[name] < least
    ]
    if unmet:
        raise BoomError.of(
            unmet, f"the child of {request.parent} is worse than required and is not published:"
        )

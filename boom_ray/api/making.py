"""Make models of a recipe: plan, run, train, update."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from boom_ray.api import arguments
from boom_ray.api.arguments import PathLike
from boom_ray.errors import InputError
from boom_ray.recipe import MergeMethod, Recipe, Task
from boom_ray.runtime.progress import ProgressCallback, reported_to

if TYPE_CHECKING:
    from boom_ray.pipeline.run import RunResult
    from boom_ray.pipeline.update.make import UpdateResult
    from boom_ray.planner.plan import RunPlan


def plan(
    recipe: Recipe,
    *,
    num_gpus: int | None = None,
    gpu_type: str | None = None,
    price: float | None = None,
    overrides: Mapping[str, float] | None = None,
    config_file: PathLike | None = None,
    baseline: bool = False,
    scale: bool = False,
    calibrate_steps: int = 0,
) -> "RunPlan":
    """Plan a run without running it: rows, schedule, memory, time, bytes and price.

    Args:
        num_gpus: GPUs of the cluster, or CPUs with `gpu_type="cpu"`.
        gpu_type: H100, H200, A100-80, A100-40, L40S, A10G, L4 or cpu.
        price: Price of one GPU per hour.
        overrides: Values that replace the plan's assumptions, by name.
        config_file: The `config.json` of a base model that cannot be read.
        baseline: Also plan a model on the full corpus.
        scale: Also plan for clusters of 8 to 4,096 GPUs.
        calibrate_steps: First measure the cluster with this many steps of each bag, at least 2; 0: do not.

    Raises:
        InputError: if the recipe does not fit the cluster, or an assumption is unknown.
        NotFoundError: if the data or the base model's `config.json` cannot be read.

    Example:
        >>> plan = boom.plan(boom.Recipe.load("recipe.yaml"), num_gpus=64, gpu_type="H100", price=2.5)
        >>> print(*plan.lines(), sep="\\n")
    """
    from boom_ray.planner.plan import PlanOptions
    from boom_ray.planner.plan import plan as make_plan

    recipe = arguments.checked(recipe)
    arguments.at_least(1, num_gpus=num_gpus)
    arguments.at_least(2, calibrate_steps=calibrate_steps or None)
    uri, numbers = arguments.optional_path(config_file), dict(overrides or {})
    options = PlanOptions(gpu_type, num_gpus, price, uri, numbers, baseline, scale)
    if calibrate_steps:
        from boom_ray.planner.calibrate import calibrate

        calibrate(recipe, options, calibrate_steps)
    return make_plan(recipe, options)


def run(recipe: Recipe, *, baseline: bool = False, progress: ProgressCallback | None = None) -> "RunResult":
    """Sample bags, train a model on each, merge the models, and evaluate the result.

    A second call with the same recipe does only what is missing.

    Args:
        baseline: Also train one model on the full corpus, and compare the merged model with it.
        progress: Receives every `ProgressEvent`; by default progress is printed.

    Returns:
        The merged model (`model`), its record, its scores, and its comparison with the baseline or the base.

    Raises:
        InputError: if the recipe cannot be run, before anything is trained.
        ConflictError: if the run's name stands for another recipe.
        BoomError: if a stage fails; a second call continues.

    Example:
        >>> result = boom.run(boom.Recipe.load("recipe.yaml"))
        >>> result.scores.to_frame()
    """
    from boom_ray.pipeline.run import run as run_pipeline

    with reported_to(progress):
        return run_pipeline(arguments.checked(recipe), baseline)


def train(recipe: Recipe, *, bag: int | None = None, progress: ProgressCallback | None = None) -> list[str]:
    """Train the models of the bags that are missing.

    Args:
        bag: Train only this bag, counted from 1.
        progress: Receives every `ProgressEvent`; by default progress is printed.

    Returns:
        URIs of the models.

    Raises:
        InputError: if there is no such bag, or a row or the base model cannot be used.
        ConflictError: if the run's name stands for another recipe.
        BoomError: if training fails; a second call continues.

    Example:
        >>> boom.train(recipe, bag=1)
        ['/runs/quickstart/models/bag-1']
    """
    recipe = arguments.checked(recipe)
    num_bags = len(recipe.bags.ratios)
    if bag is not None and not 1 <= bag <= num_bags:
        raise InputError(f"bag: got {bag}; the recipe has bags 1 to {num_bags}")
    from boom_ray.pipeline.training import train as train_models

    with reported_to(progress):
        return train_models(recipe, None if bag is None else bag - 1)


def update(
    recipe: Recipe,
    new_data: PathLike | Task | Sequence[PathLike | Task],
    *,
    parent: str | None = None,
    core_percent: float = 40,
    method: MergeMethod | None = None,
    weights: Literal["equal", "mass"] = "equal",
    flat: bool = False,
    scale: float = 1.0,
    new_evaluation: PathLike | None = None,
    requirements: str | Mapping[str, float] = "",
    progress: ProgressCallback | None = None,
) -> "UpdateResult":
    """Add new data to a published version: train a small model on it, merge, and publish the next version.

    Args:
        recipe: The recipe of the run.
        new_data: Rows (a file or directory), YAML lists of tasks, or `Task` objects.
        parent: Version that the update adds to; by default the current one.
        core_percent: Percentage of every earlier task that is trained on again.
        method: Merge method; by default the recipe's.
        weights: Weights of the merge: `equal`, or `mass`, by the rows behind each model.
        flat: Merge all models that contribute, instead of the parent with the update.
        scale: 0 is the parent, 1 the merge; it may exceed 1.
        new_evaluation: Directory of tasks for the new data.
        requirements: Publish only if `old_mean` and `new_mean` change by at least so many percent, compared
            with the parent: `"old_mean >= -0.5%, new_mean >= +1%"` or `{"old_mean": -0.5, "new_mean": 1}`.
        progress: Receives every `ProgressEvent`; by default progress is printed.

    Returns:
        The new version (`model`), its record, and `metrics` of parent, update and child.

    Raises:
        InputError: if an argument is not valid, before anything is trained.
        NotFoundError: if there is no such run, version or data.
        ConflictError: if the recipe is not the run's, or a task has the name of an earlier one.
        BoomError: if a stage fails, or the child does not meet the requirements; then nothing is published.

    Example:
        >>> child = boom.update(recipe, "week-12.jsonl", requirements="old_mean >= -0.5%")
        >>> child.metrics.change
    """
    from boom_ray.pipeline.update.make import update as run_update
    from boom_ray.runs.updates import UpdateRequest, read_tasks

    recipe = arguments.checked(recipe)
    sources = [new_data] if isinstance(new_data, str | os.PathLike | Task) else new_data
    tasks: list[Task] = []
    for source in sources:
        tasks += [source] if isinstance(source, Task) else read_tasks(arguments.path(source))
    values = {
        "parent": parent,
        "tasks": [task.model_dump() for task in tasks],
        "core_percent": core_percent,
        "method": method,
        "weights": weights,
        "flat": flat,
        "scale": scale,
        "new_evaluation": arguments.optional_path(new_evaluation),
        "requirements": requirements if isinstance(requirements, str) else dict(requirements),
    }
    request = arguments.section(UpdateRequest, values, "not a valid update:")
    with reported_to(progress):
        return run_update(recipe, request)

"""From a recipe and a cluster to a plan: gather what is known, work it out, simulate, print."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from boom_ray import storage
from boom_ray.data import corpus
from boom_ray.model import directory, tokenizer
from boom_ray.planner import calibration, hardware, render, shape
from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.estimate import Estimate, Known, estimate
from boom_ray.planner.hardware import Cluster
from boom_ray.planner.outlook import outlook
from boom_ray.planner.texts import Loads
from boom_ray.recipe import Recipe
from boom_ray.runtime.console import console

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SIZES = tuple(8 << power for power in range(10))


@dataclass(frozen=True)
class Request:
    """What is planned for.

    Attributes:
        gpu_type: A kind of processor; by default that of the calibration.
        num_gpus: How many; by default as many as the calibrated cluster has, or as all bags need at once.
        config_file: The base model's `config.json`, if it cannot be reached.
        given: Assumptions by name.
    """

    gpu_type: str | None = None
    num_gpus: int | None = None
    config_file: str | None = None
    given: dict[str, float] = field(default_factory=dict)


def plan(recipe: Recipe, request: Request, calibrate_steps: int = 0, scale: bool = False) -> None:
    """Print what a run would take.

    Args:
        calibrate_steps: Measure the cluster first, with so many steps of each bag.
        scale: Also plan for clusters of 8 to 4,096 processors.

    Raises:
        BoomError: if the recipe does not fit the cluster, or something is neither known nor given.
    """
    assume = Assumptions(request.given)
    known = gather(recipe, request.config_file, assume)
    if calibrate_steps:
        _calibrate(known, calibrate_steps, request)
    cluster = _cluster(recipe, request, assume)
    made = on_cluster(known, cluster, assume)
    lines = [*render.lines(made, outlook(made, assume), assume)]
    if scale:
        lines += _scale(known, cluster.gpu_type, assume)
    assume.check()
    for line in [*lines, "assumptions: each can be given with --assume name=value", *assume.lines()]:
        console.print(line)


def _cluster(recipe: Recipe, request: Request, assume: Assumptions) -> Cluster:
    """The cluster that is asked for; if it is of the kind that was measured, with what was measured."""
    found, execution = calibration.stored(recipe), recipe.train.execution
    usual = "H100" if execution.use_gpu else "cpu"
    gpu_type = request.gpu_type or (found.gpu_type if found else usual)
    num_gpus = request.num_gpus or _enough(recipe, gpu_type)
    if found and found.gpu_type == gpu_type:
        num_gpus = request.num_gpus or found.num_gpus
        assume.measured = found.values
        console.print(f"calibration: of {found.created}, on {found.num_gpus} {found.gpu_type}")
    return hardware.cluster(gpu_type, num_gpus, execution, assume)


def gather(recipe: Recipe, config_file: str | None, assume: Assumptions) -> Known:
    """Rows, texts and the shape of the model."""
    sizes = corpus.expected_rows(recipe.data, storage.join(recipe.root, "corpus"))
    own, limit = _tokenizer(recipe)
    loads = Loads(recipe, limit, own, assume)
    found = {task.name: loads.of(task) for task in recipe.data.tasks}
    base = shape.read(recipe.base_model.path, config_file, recipe.train.lora, assume)
    return Known(recipe, base, sizes, found, loads.evaluation(recipe.evaluate))


def on_cluster(known: Known, cluster: Cluster, assume: Assumptions) -> Estimate:
    """The plan of what is known for one cluster."""
    return estimate(known, cluster, hardware.rank(cluster, known.recipe.train.precision, assume), assume)


def _calibrate(known: Known, steps: int, request: Request) -> None:
    from boom_ray.planner.calibrate import calibrate, hardware_of
    from boom_ray.runtime.cluster import connect

    connect()
    recipe, plain = known.recipe, Assumptions(request.given)
    cluster = hardware.cluster(*hardware_of(recipe), recipe.train.execution, plain)
    rank = hardware.rank(cluster, recipe.train.precision, plain)
    calibrate(known, cluster, rank, steps)


def _scale(known: Known, gpu_type: str, assume: Assumptions) -> Iterator[str]:
    """The same run on larger and larger clusters, where ranks are shared out as they are there."""
    execution = known.recipe.train.execution.model_copy(update={"num_workers": "auto"})
    train = known.recipe.train.model_copy(update={"execution": execution})
    wide = replace(known, recipe=known.recipe.model_copy(update={"train": train}))
    rows = []
    for num_gpus in SIZES:
        made = on_cluster(wide, hardware.cluster(gpu_type, num_gpus, execution, assume), assume)
        rows.append((num_gpus, made, outlook(made, assume)))
    return render.scale_lines(rows)


def _enough(recipe: Recipe, gpu_type: str) -> int:
    """Processors for all bags at once."""
    execution = recipe.train.execution
    share = execution.resources_per_worker.get("CPU" if gpu_type == "cpu" else "GPU", 1.0)
    each = 1 if execution.num_workers == "auto" else execution.num_workers
    return max(1, round(len(recipe.bags.ratios) * each * share + 0.49))


def _tokenizer(recipe: Recipe) -> "tuple[PreTrainedTokenizerBase | None, int | None]":
    """The base model's tokenizer and maximum length; none where the model cannot be reached."""
    from transformers import AutoTokenizer

    uri = recipe.base_model.path
    if storage.is_hub(uri):
        repository, revision = storage.hub_name(uri)
        try:
            return AutoTokenizer.from_pretrained(repository, revision=revision), None
        except OSError:
            return None, None
    with tempfile.TemporaryDirectory(prefix="boom-ray-plan-") as local:
        directory.copy_all_but_weights(uri, local, "float32")
        spec = directory.read_spec(local, recipe.base_model)
        return tokenizer.load(local, spec), spec.max_length

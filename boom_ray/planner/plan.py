"""A plan: from a recipe and a cluster to rows, steps, memory, time, bytes and price, without running it."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from boom_ray import storage
from boom_ray.data import corpus
from boom_ray.model import directory, tokenizer
from boom_ray.planner import assumptions, calibration, hardware, memory, render, shape
from boom_ray.planner.assumptions import Assumption, Assumptions
from boom_ray.planner.calibration import Calibration
from boom_ray.planner.estimate import BagEstimate, Estimate, estimate
from boom_ray.planner.forecast import Forecast, forecast
from boom_ray.planner.hardware import ClusterSpec
from boom_ray.planner.memory import MemoryTable
from boom_ray.planner.shape import ModelShape
from boom_ray.planner.texts import TextSampler
from boom_ray.planner.workload import Workload, planned_bags, planned_baseline, sized
from boom_ray.recipe import Recipe
from boom_ray.runs.layout import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SIZES = tuple(8 << power for power in range(10))


@dataclass(frozen=True)
class PlanOptions:
    """The cluster to plan for, and overrides.

    Attributes:
        gpu_type: A key of `hardware.DATA_SHEETS`; by default that of the calibration, else H100, or `cpu` for
            a recipe without GPUs.
        num_gpus: Processors; by default those of the calibration, else as many as all bags need at once.
        price: Price of one processor per hour, in any currency.
        config_file: URI of the base model's `config.json`, if the base model cannot be read.
        overrides: Assumptions by name.
        baseline: Also train one model on the full corpus.
        scale: Also plan for clusters of 8 to 4,096 processors.
    """

    gpu_type: str | None = None
    num_gpus: int | None = None
    price: float | None = None
    config_file: str | None = None
    overrides: dict[str, float] = field(default_factory=dict)
    baseline: bool = False
    scale: bool = False


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run; `lines()` is what `boom-ray plan` prints.

    Attributes:
        estimate: The run without node failures: bags, schedule, stages, bytes.
        forecast: Training with node failures, and the load of the head node.
        memory: Memory of a rank of the bag that needs the most.
        held_hours: GPU-hours (or CPU-hours) if the run holds the whole cluster, with node failures.
        price: Price of `held_hours`; None without a price per hour.
        scale: Estimate and forecast for each of `SIZES`, if requested.
        calibration: The calibration that the plan uses.
        assumptions: Every assumption of the plan by name.
    """

    estimate: Estimate
    forecast: Forecast
    memory: MemoryTable
    held_hours: float
    price: float | None
    scale: list[tuple[Estimate, Forecast]]
    calibration: Calibration | None
    assumptions: dict[str, Assumption]

    def lines(self) -> Iterator[str]:
        """The plan as lines of text."""
        if self.calibration:
            one = self.calibration
            yield f"calibration: {one.created}, {one.num_gpus} {one.gpu_type}"
        yield from render.corpus(self.estimate)
        yield from render.bags(self.estimate)
        yield from render.schedule(self.estimate)
        yield from render.memory(self.estimate, self.memory)
        yield from render.volumes(self.estimate)
        yield from render.failures(self.estimate, self.forecast)
        yield render.costs(self.estimate, self.held_hours, self.price)
        if self.scale:
            yield from render.scale(self.scale)
        yield "assumptions:"
        yield from assumptions.lines(self.assumptions)


def plan(recipe: Recipe, options: PlanOptions | None = None) -> RunPlan:
    """Plan a run without Ray and without training.

    Raises:
        InputError: if the recipe does not fit the cluster, or an override is not an assumption of the plan.
        NotFoundError: if rows cannot be counted, or the base model's `config.json` cannot be read.
    """
    options = options or PlanOptions()
    found, gpu_type, num_gpus = _processors(recipe, options)
    overrides = dict(options.overrides)
    if options.price is not None:
        overrides["price.per_gpu_hour"] = options.price
    # Known before anything is measured or assumed, so that a calibrated value reaches every part of the plan.
    assume = Assumptions(overrides, found.values if found else None)
    workload = gather(recipe, options.config_file, assume, options.baseline)
    cluster = hardware.cluster(gpu_type, num_gpus, recipe.train.execution, assume)
    rank = hardware.rank(cluster, recipe.train.precision, assume)
    workload = sized(workload, rank, assume)
    planned = on_cluster(workload, cluster, assume)
    forecasted = forecast(planned, assume)
    held = cluster.num_gpus * (forecasted.makespan + planned.merge + planned.evaluate) / 3600
    rate = assume.take("price.per_gpu_hour", 0.0, "", "no price given")
    made = RunPlan(
        estimate=planned,
        forecast=forecasted,
        memory=_memory(planned, assume),
        held_hours=held,
        price=rate * held if rate else None,
        scale=_scale(workload, gpu_type, assume) if options.scale else [],
        calibration=found,
        assumptions=assume.used,
    )
    assume.check()
    return made


def _processors(recipe: Recipe, options: PlanOptions) -> tuple[Calibration | None, str, int]:
    """The calibration, if it is of the planned kind of processor; that kind, and the number."""
    found = calibration.stored(recipe)
    default = "H100" if recipe.train.execution.use_gpu else "cpu"
    gpu_type = options.gpu_type or (found.gpu_type if found else default)
    if found and found.gpu_type != gpu_type:
        found = None
    num_gpus = options.num_gpus or (found.num_gpus if found else _for_all_bags(recipe, options, gpu_type))
    return found, gpu_type, num_gpus


def gather(recipe: Recipe, config_file: str | None, assume: Assumptions, baseline: bool = False) -> Workload:
    """Count rows, measure or assume texts, and read the shape of the base model."""
    num_rows = corpus.expected_rows(recipe.data, Layout(recipe.root).corpus)
    own, limit = _tokenizer(recipe)
    sampler = TextSampler(recipe, limit, own, assume)
    texts = {task.name: sampler.of(task) for task in recipe.data.tasks}
    *of_bags, of_recipe = _shapes(recipe, config_file, assume)
    return Workload(
        recipe=recipe,
        shape=of_recipe,
        num_rows=num_rows,
        texts=texts,
        evaluation=sampler.evaluation(recipe.evaluate),
        bags=planned_bags(recipe, of_bags, num_rows, texts),
        baseline=planned_baseline(recipe, of_recipe, num_rows, texts) if baseline else None,
    )


def _shapes(recipe: Recipe, config_file: str | None, assume: Assumptions) -> list[ModelShape]:
    """The base model with the adapters of each bag, and last with those of the recipe."""
    adapters = [recipe.train_of(index).lora for index in range(len(recipe.bags.ratios))]
    found = dict[str, ModelShape]()
    for lora in [*adapters, recipe.train.lora]:
        if repr(lora) not in found:
            found[repr(lora)] = shape.read(recipe.base_model.path, config_file, lora, assume)
    return [found[repr(lora)] for lora in [*adapters, recipe.train.lora]]


def on_cluster(workload: Workload, cluster: ClusterSpec, assume: Assumptions) -> Estimate:
    """The estimate of a workload on one cluster."""
    rank = hardware.rank(cluster, workload.recipe.train.precision, assume)
    return estimate(workload, cluster, rank, assume)


def _memory(planned: Estimate, assume: Assumptions) -> MemoryTable:
    """Memory of a rank of the bag that needs the most."""

    def needed(bag: BagEstimate) -> float:
        one, saves = bag.planned, bag.num_checkpoints > 0
        return memory.as_set(one.shape, one.train, bag.ranks, assume, saves).total

    bag = max(planned.bags, key=needed)
    one, saves = bag.planned, bag.num_checkpoints > 0
    return memory.table(one.shape, one.train, bag.ranks, planned.rank.memory, assume, saves)


def _scale(workload: Workload, gpu_type: str, assume: Assumptions) -> list[tuple[Estimate, Forecast]]:
    """The same run on clusters of growing size, with `num_workers: auto`."""
    execution = workload.recipe.train.execution.model_copy(update={"num_workers": "auto"})
    train = workload.recipe.train.model_copy(update={"execution": execution})
    scaled = replace(workload, recipe=workload.recipe.model_copy(update={"train": train}))
    rows = []
    for num_gpus in SIZES:
        planned = on_cluster(scaled, hardware.cluster(gpu_type, num_gpus, execution, assume), assume)
        rows.append((planned, forecast(planned, assume)))
    return rows


def _for_all_bags(recipe: Recipe, options: PlanOptions, gpu_type: str) -> int:
    """Processors for all bags at once, each with the fewest ranks that it starts with."""
    execution, num_bags = recipe.train.execution, len(recipe.bags.ratios) + options.baseline
    per_rank = execution.resources_per_worker.get("CPU" if gpu_type == "cpu" else "GPU", 1.0)
    return max(1, round(num_bags * execution.fewest_workers * per_rank + 0.49))


def _tokenizer(recipe: Recipe) -> "tuple[PreTrainedTokenizerBase | None, int | None]":
    """The base model's tokenizer and maximum length; None for both if the model cannot be read."""
    from transformers import AutoTokenizer

    uri = recipe.base_model.path
    if storage.is_hub(uri):
        repository, revision = storage.hub_name(uri)
        try:
            return AutoTokenizer.from_pretrained(repository, revision=revision), None
        except OSError:  # transformers' error for a model that neither the hub nor its cache returns
            return None, None
    if not shape.is_readable(uri):
        return None, None
    with tempfile.TemporaryDirectory(prefix="boom-ray-plan-") as local:
        directory.copy_all_but_weights(uri, local, "float32")
        spec = directory.read_spec(local, recipe.base_model)
        return tokenizer.load(local, spec), spec.max_length

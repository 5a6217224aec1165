"""The estimate of a run on a cluster: the steps and duration of each bag, the schedule, the other stages."""

from dataclasses import dataclass, replace

from boom_ray import storage
from boom_ray.artifacts import checkpoints
from boom_ray.errors import InputError
from boom_ray.planner import cost, memory, stages
from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.cost import StepCost
from boom_ray.planner.hardware import ClusterSpec, RankSpec
from boom_ray.planner.workload import PlannedBag, Workload
from boom_ray.recipe import Recipe
from boom_ray.train.schedule import Schedule, longest_first, schedule_for


@dataclass(frozen=True)
class BagEstimate:
    """One bag on a cluster.

    Attributes:
        step: The cost of one step on its ranks.
        averaging: Seconds of all steps in which weights are averaged, in addition to the steps themselves.
        start, end: Seconds since the start of training; startup and publishing are included.
    """

    planned: PlannedBag
    ranks: int
    step: StepCost
    averaging: float
    start: float
    end: float

    @property
    def work(self) -> float:
        """Seconds of all steps."""
        return self.steps * self.step.seconds + self.averaging

    @property
    def num_checkpoints(self) -> int:
        """Checkpoints that the bag stores; the last step has none."""
        return (self.steps - 1) // self.planned.train.execution.save_every_steps

    @property
    def name(self) -> str:
        """Name of the bag."""
        return self.planned.name

    @property
    def rows(self) -> int:
        """Rows of all tasks."""
        return self.planned.num_rows

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.planned.steps

    @property
    def tokens(self) -> float:
        """Tokens of all steps, without padding."""
        return self.steps * self.planned.batches.tokens

    @property
    def checkpoint_bytes(self) -> float:
        """Bytes of a checkpoint."""
        return memory.checkpoint_bytes(self.planned.shape, self.planned.train)

    @property
    def published_bytes(self) -> float:
        """Bytes of the published model."""
        return stages.published_bytes(self.planned)

    @property
    def seconds(self) -> float:
        """Duration of the bag."""
        return self.end - self.start


@dataclass(frozen=True)
class Estimate:
    """A run on a cluster; times in seconds, sizes in bytes.

    Attributes:
        start: From the start of a bag to its first step.
        finish: From a bag's last step to its published model.
        save: Time that a checkpoint stops training.
        upload: Time from then until the checkpoint is stored.
        train, merge, evaluate: Duration of each stage.
        embed: Duration of embedding texts with the merged model.
        storage: Stored bytes by kind.
        network: Transferred bytes by kind.
    """

    workload: Workload
    cluster: ClusterSpec
    rank: RankSpec
    bags: list[BagEstimate]
    start: float
    finish: float
    save: float
    upload: float
    train: float
    merge: float
    evaluate: float
    embed: float
    storage: dict[str, float]
    network: dict[str, float]

    @property
    def run(self) -> float:
        """Duration of the whole run."""
        return self.train + self.merge + self.evaluate

    @property
    def longest(self) -> BagEstimate:
        """The bag with the longest duration."""
        return max(self.bags, key=lambda bag: bag.seconds)

    @property
    def passes(self) -> float:
        """Rows of all bags per row of the corpus: the cost compared with one full-corpus model."""
        return sum(bag.rows for bag in self.bags) / sum(self.workload.num_rows.values())

    @property
    def training_hours(self) -> float:
        """GPU-hours (or CPU-hours) of training."""
        return sum(bag.ranks * bag.seconds for bag in self.bags) * self.cluster.gpus_per_rank / 3600


def schedule_of(recipe: Recipe, steps: list[int], capacity: int) -> Schedule:
    """The schedule that training would choose, in steps of one rank.

    Raises:
        InputError: if a bag needs more than `capacity` ranks.
    """
    fewest = recipe.train.execution.fewest_workers
    if fewest > capacity:
        raise InputError(
            f"train.execution.num_workers {fewest}: the cluster has capacity for {capacity} ranks. "
            "Lower it, or plan for more processors (num_gpus)"
        )
    return schedule_for(steps, recipe.train, capacity)


def estimate(workload: Workload, cluster: ClusterSpec, rank: RankSpec, assume: Assumptions) -> Estimate:
    """Estimate a run.

    Raises:
        InputError: if a bag needs more ranks than the cluster has.
    """
    recipe, shape = workload.recipe, workload.shape
    stored = assume.take("storage.bytes_per_second", 0.5e9, "B/s", "of one process, a guess")
    model = memory.element_bytes(recipe.train) * shape.parameters
    copied = model if storage.is_local(recipe.storage) else model + _corpus_bytes(workload)
    source = "processes, and reading the model and a remote corpus, once a node"
    start = assume.take("train.start_seconds", 60 + copied / stored, "s", source)
    source = "check, write and hash the model"
    written = max(map(stages.published_bytes, workload.trained))
    finish = assume.take("train.finish_seconds", 10 + 2 * written / stored, "s", source)
    to_host = assume.take("checkpoint.copy_bytes_per_second", 3e9, "B/s", "copies to host memory, a guess")
    planned = _bags(workload, cluster, rank, start + finish, to_host)
    save, upload = max(stages.checkpoint_seconds(bag.planned, bag.ranks, stored, to_host) for bag in planned)
    # The base model, every trained model, and the merged model.
    num_evaluated = len(planned) + 2
    return Estimate(
        workload=workload,
        cluster=cluster,
        rank=rank,
        bags=planned,
        start=start,
        finish=finish,
        save=save,
        upload=upload,
        train=max(bag.end for bag in planned),
        merge=stages.merge_seconds(recipe, workload.bags, assume),
        evaluate=stages.evaluate_seconds(
            recipe, shape, cluster, rank, workload.evaluation, num_evaluated, stored, assume
        ),
        embed=stages.embed_seconds(shape, cluster, rank, workload.texts, stored, assume),
        storage=_stored(workload, planned),
        network=_transferred(workload, planned, cluster),
    )


def _bags(
    workload: Workload, cluster: ClusterSpec, rank: RankSpec, overhead: float, copied: float
) -> list[BagEstimate]:
    """All bags with their times.

    Args:
        overhead: Seconds of each bag that are not steps.
        copied: Bytes per second to host memory.
    """
    drawn = workload.trained
    ranks = schedule_of(workload.recipe, [bag.steps for bag in drawn], cluster.num_ranks).ranks
    alone = []
    for bag, n in zip(drawn, ranks, strict=True):
        one = cost.step(bag.shape, bag.train, bag.batches, n, cluster, rank)
        averaging = stages.average_seconds(bag, n, cost.bandwidth_of(n, cluster, rank), copied)
        alone.append(BagEstimate(bag, n, one, averaging, start=0.0, end=0.0))
    work = [bag.ranks * (overhead + bag.work) for bag in alone]
    spans = longest_first(work, ranks, cluster.num_ranks).spans
    return [replace(bag, start=start, end=end) for bag, (start, end) in zip(alone, spans, strict=True)]


def _checkpoints_at_once(planned: list[BagEstimate]) -> float:
    """Bytes of the checkpoints of all bags that train at the same time, with one that is being stored."""
    return max(
        sum(
            min(bag.num_checkpoints, checkpoints.KEPT + 1) * bag.checkpoint_bytes
            for bag in planned
            if bag.start <= first.start < bag.end
        )
        for first in planned
    )


def _stored(workload: Workload, planned: list[BagEstimate]) -> dict[str, float]:
    recipe, shape = workload.recipe, workload.shape
    return {
        "corpus": _corpus_bytes(workload),
        "bag manifests": 4.0 * sum(bag.rows for bag in planned),
        "models of bags": sum(bag.published_bytes for bag in planned),
        "merged model": stages.merged_bytes(recipe, shape),
        "checkpoints at once": _checkpoints_at_once(planned),
    }


def _transferred(workload: Workload, planned: list[BagEstimate], cluster: ClusterSpec) -> dict[str, float]:
    recipe, shape = workload.recipe, workload.shape
    model = memory.element_bytes(recipe.train) * shape.parameters
    saved = sum(bag.num_checkpoints * bag.checkpoint_bytes for bag in planned)
    num_nodes = cluster.nodes_of(min(cluster.num_ranks, sum(bag.ranks for bag in planned)))
    measuring = stages.evaluation_nodes(recipe, cluster, len(workload.evaluation), len(planned) + 2)
    measured = model + sum(bag.published_bytes for bag in planned) + stages.merged_bytes(recipe, shape)
    return {
        "gradients and weights between ranks": sum(bag.steps * bag.ranks * bag.step.sent for bag in planned),
        "base model and corpus to nodes": num_nodes * (model + _corpus_bytes(workload)),
        "checkpoints to storage": saved,
        "models to storage": sum(bag.published_bytes for bag in planned),
        "merge": stages.merge_bytes(recipe, workload.bags),
        "models to nodes for evaluation": measuring * measured,
    }


def _corpus_bytes(workload: Workload) -> float:
    return sum(rows * workload.texts[task].row_bytes for task, rows in workload.num_rows.items())

"""A run in numbers: what every bag holds and takes, when it runs, and what the other stages add."""

from dataclasses import dataclass

from boom_ray.data import bags
from boom_ray.data.batches import num_batches, num_steps
from boom_ray.errors import BoomError
from boom_ray.planner import cost, memory, stages
from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.cost import Step
from boom_ray.planner.hardware import Cluster, Rank
from boom_ray.planner.shape import Shape
from boom_ray.planner.texts import Load
from boom_ray.recipe import Recipe
from boom_ray.train.schedule import Schedule, best, longest_first


@dataclass(frozen=True)
class Known:
    """What does not depend on the cluster.

    Attributes:
        shape: Of the base model.
        sizes: Rows of each task.
        loads: Its mean global batch.
        evaluation: Texts of each task that models are measured on.
    """

    recipe: Recipe
    shape: Shape
    sizes: dict[str, int]
    loads: dict[str, Load]
    evaluation: list[Load]


@dataclass(frozen=True)
class Bag:
    """One bag.

    Attributes:
        ratio: Percentage of every task.
        load: Its mean global batch.
        step: The cost of one step on its ranks.
        start, end: Seconds since the start of training, with the bag's own start and its publishing.
    """

    name: str
    ratio: float
    rows: int
    steps: int
    ranks: int
    load: Load
    step: Step
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """From its start to its end."""
        return self.end - self.start


@dataclass(frozen=True)
class Estimate:
    """A run on a cluster; times are in seconds, sizes in bytes.

    Attributes:
        start: Until a bag's first step.
        finish: From its last step until it is published.
        save: That training stands still for a checkpoint.
        upload: After that until it is stored.
        train, merge, evaluate: Of each stage.
        embed: Of embedding texts afterwards.
        storage: What is stored, by what it is.
        network: What is moved, by what moves it.
    """

    known: Known
    cluster: Cluster
    rank: Rank
    bags: list[Bag]
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
        """Seconds of the whole run."""
        return self.train + self.merge + self.evaluate

    @property
    def longest(self) -> Bag:
        """The bag that takes longest."""
        return max(self.bags, key=lambda bag: bag.seconds)


def schedule_of(recipe: Recipe, steps: list[int], room: int) -> Schedule:
    """Which bag runs when, in steps of one rank, as training decides it.

    Raises:
        BoomError: if a bag needs more ranks than there are.
    """
    wanted = recipe.train.execution.num_workers
    if wanted == "auto":
        return best(steps, room, recipe.train.batch_size)
    if wanted > room:
        raise BoomError(f"a bag needs {wanted} ranks (train.execution.num_workers), there is room for {room}")
    return longest_first(steps, [wanted] * len(steps), room)


def estimate(known: Known, cluster: Cluster, rank: Rank, assume: Assumptions) -> Estimate:
    """Work out a run.

    Raises:
        BoomError: if a bag needs more ranks than there are.
    """
    recipe, shape = known.recipe, known.shape
    stored = assume.take("storage.bytes_per_second", 0.5e9, "B/s", "of one process, a guess")
    model = memory.element_bytes(recipe.train) * shape.parameters
    start = assume.take("train.start_seconds", 60 + model / stored, "s", "processes, and reading the model")
    source = "check, write and hash the model"
    finish = assume.take("train.finish_seconds", 10 + 2 * model / stored, "s", source)
    planned = _bags(known, cluster, rank, start + finish)
    width = max(bag.ranks for bag in planned)
    save, upload = stages.checkpoint_seconds(recipe, shape, width, stored, assume)
    at_once = max(sum(other.start <= bag.start < other.end for other in planned) for bag in planned)
    return Estimate(
        known=known,
        cluster=cluster,
        rank=rank,
        bags=planned,
        start=start,
        finish=finish,
        save=save,
        upload=upload,
        train=max(bag.end for bag in planned),
        merge=stages.merge_seconds(recipe, shape, assume),
        evaluate=stages.evaluate_seconds(recipe, shape, cluster, known.evaluation, assume),
        embed=stages.embed_seconds(shape, cluster, rank, known.loads, assume),
        storage=_stored(known, planned, at_once),
        network=_moved(known, planned, cluster),
    )


def _bags(known: Known, cluster: Cluster, rank: Rank, around: float) -> list[Bag]:
    """All bags with their times; `around` is the seconds of each that are not steps."""
    recipe, train = known.recipe, known.recipe.train
    counts = bags.counts(known.sizes, recipe.bags)
    steps = [num_steps(tasks.values(), train) for tasks in counts]
    ranks = schedule_of(recipe, steps, cluster.num_ranks).ranks
    loads = [
        cost.mean_load(known.loads, {task: num_batches([n], train.batch_size) for task, n in bag.items()})
        for bag in counts
    ]
    each = [
        cost.step(known.shape, train, load, n, cluster, rank) for load, n in zip(loads, ranks, strict=True)
    ]
    work = [n * (around + count * one.seconds) for n, count, one in zip(ranks, steps, each, strict=True)]
    spans = longest_first(work, ranks, cluster.num_ranks).spans
    return [
        Bag(
            name=bags.name_of(index),
            ratio=recipe.bags.ratios[index],
            rows=sum(tasks.values()),
            steps=steps[index],
            ranks=ranks[index],
            load=loads[index],
            step=each[index],
            start=spans[index][0],
            end=spans[index][1],
        )
        for index, tasks in enumerate(counts)
    ]


def _stored(known: Known, planned: list[Bag], at_once: int) -> dict[str, float]:
    recipe, shape = known.recipe, known.shape
    saves = any(bag.steps > recipe.train.execution.save_every_steps for bag in planned)
    state = memory.checkpoint_bytes(shape, recipe.train)
    return {
        "corpus": _corpus_bytes(known),
        "bag manifests": 4.0 * sum(bag.rows for bag in planned),
        "models of bags": len(planned) * memory.element_bytes(recipe.train) * shape.parameters,
        "merged model": stages.merged_bytes(recipe, shape),
        "checkpoints at once": stages.KEPT_CHECKPOINTS * at_once * state if saves else 0.0,
    }


def _moved(known: Known, planned: list[Bag], cluster: Cluster) -> dict[str, float]:
    recipe, shape = known.recipe, known.shape
    model = memory.element_bytes(recipe.train) * shape.parameters
    saves = sum((bag.steps - 1) // recipe.train.execution.save_every_steps for bag in planned)
    nodes = cluster.nodes_of(min(cluster.num_ranks, sum(bag.ranks for bag in planned)))
    return {
        "gradients and weights between ranks": sum(bag.steps * bag.ranks * bag.step.sent for bag in planned),
        "base model and corpus to nodes": nodes * (model + _corpus_bytes(known)),
        "checkpoints to storage": saves * memory.checkpoint_bytes(shape, recipe.train),
        "models to storage": len(planned) * model,
        "merge": stages.merge_bytes(recipe, shape, len(planned)),
    }


def _corpus_bytes(known: Known) -> float:
    return sum(rows * known.loads[task].row_bytes for task, rows in known.sizes.items())

"""The work of a run, as far as it does not depend on the cluster: its bags, texts and models."""

from dataclasses import dataclass, replace

from boom_ray.data import bags
from boom_ray.data.bags import BASELINE
from boom_ray.data.batches import num_batches, num_steps
from boom_ray.planner import memory
from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.hardware import RankSpec
from boom_ray.planner.shape import ModelShape
from boom_ray.planner.texts import BatchMix, EncodedTexts, TaskTexts
from boom_ray.recipe import Bag, Bags, Recipe, Train


@dataclass(frozen=True)
class PlannedBag:
    """One bag, or the baseline.

    Attributes:
        bag: Its entry in the recipe.
        train: Its settings of training.
        shape: The base model with its adapters, if it trains any.
        rows: Rows of each task.
        batches: Its global batches.
    """

    name: str
    bag: Bag
    train: Train
    shape: ModelShape
    rows: dict[str, int]
    batches: BatchMix

    @property
    def num_rows(self) -> int:
        """Rows of all tasks."""
        return sum(self.rows.values())

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return num_steps(self.rows.values(), self.train)


@dataclass(frozen=True)
class Workload:
    """The part of a plan that does not depend on the cluster.

    Attributes:
        shape: The base model with the adapters of the recipe's `train`.
        num_rows: Rows of each task.
        texts: Texts of each task.
        evaluation: The texts of each evaluation task.
        bags: The bags that are merged.
        baseline: The bag of the full corpus, if the run also trains one.
    """

    recipe: Recipe
    shape: ModelShape
    num_rows: dict[str, int]
    texts: dict[str, TaskTexts]
    evaluation: list[EncodedTexts]
    bags: list[PlannedBag]
    baseline: PlannedBag | None = None

    @property
    def trained(self) -> list[PlannedBag]:
        """The bags and the baseline."""
        return self.bags + ([self.baseline] if self.baseline else [])


def planned_bags(
    recipe: Recipe, shapes: list[ModelShape], num_rows: dict[str, int], texts: dict[str, TaskTexts]
) -> list[PlannedBag]:
    """The bags of a recipe.

    Args:
        shapes: The base model with the adapters of each bag.
        num_rows: Rows of each task.
        texts: Texts of each task.
    """
    planned = []
    for index, (rows, shape) in enumerate(zip(bags.counts(num_rows, recipe.bags), shapes, strict=True)):
        batches = {task: num_batches([count], recipe.train.batch_size) for task, count in rows.items()}
        planned.append(
            PlannedBag(
                name=bags.name_of(index),
                bag=recipe.bags.ratios[index],
                train=recipe.train_of(index),
                shape=shape,
                rows=rows,
                batches=BatchMix.of(texts, batches),
            )
        )
    return planned


def planned_baseline(
    recipe: Recipe, shape: ModelShape, num_rows: dict[str, int], texts: dict[str, TaskTexts]
) -> PlannedBag | None:
    """The bag of the full corpus; None if one of the recipe's bags is."""
    if bags.whole(recipe) is not None:
        return None
    full = recipe.model_copy(update={"bags": Bags(ratios=[Bag(ratio=100)])})
    return replace(planned_bags(full, [shape], num_rows, texts)[0], name=BASELINE)


def sized(workload: Workload, rank: RankSpec, assume: Assumptions) -> Workload:
    """The workload with the number of tokens that `chunk_tokens: auto` allows each bag on a rank."""
    num_ranks = workload.recipe.train.execution.fewest_workers

    def with_number(bag: PlannedBag) -> PlannedBag:
        train = memory.with_chunk_tokens(bag.train, bag.shape, num_ranks, rank.memory, assume)
        return replace(bag, train=train)

    return replace(
        workload,
        bags=[with_number(bag) for bag in workload.bags],
        baseline=with_number(workload.baseline) if workload.baseline else None,
    )

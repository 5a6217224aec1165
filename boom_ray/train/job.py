"""What a worker needs to know about the bag it trains."""

from dataclasses import dataclass
from typing import Any

from boom_ray.artifacts.record import Parent
from boom_ray.recipe import Recipe


@dataclass(frozen=True)
class BagJob:
    """One bag's training.

    Attributes:
        index: Of the bag, from 0.
        name: Of the bag; the version of the model it becomes.
        rows: Rows in the bag.
        steps: Optimizer steps.
        num_ranks: Ranks that train it.
        corpus: URI of the corpus artifact.
        bags: URI of the bag manifests.
        checkpoints: URI below which this bag's checkpoints lie.
        target: URI the model is published at.
        fingerprint: Identity of everything that determines the weights.
        parents: Artifacts the model is made from.
        submission_id: Of the Ray job that trains it, if it was submitted.
        board: Handle of the actor that is told of progress (`boom_ray.train.board.ProgressBoard`).
    """

    recipe: Recipe
    index: int
    name: str
    rows: int
    steps: int
    num_ranks: int
    corpus: str
    bags: str
    checkpoints: str
    target: str
    fingerprint: str
    parents: list[Parent]
    submission_id: str | None
    board: Any

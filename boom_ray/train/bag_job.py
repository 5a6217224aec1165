"""The description of one bag's training, as the driver sends it to the ranks."""

from dataclasses import dataclass
from typing import Any

from boom_ray.artifacts.record import Parent
from boom_ray.recipe import Recipe


@dataclass(frozen=True)
class BagJob:
    """One bag's training.

    Attributes:
        recipe: The recipe of the run, with the settings of this bag as its `train`.
        index: Index of the bag, from 0.
        name: Name of the bag, and version of its model.
        rows: Number of rows in the bag.
        steps: Number of optimizer steps.
        num_ranks: Number of ranks that train it; of a range, as many as fit on the cluster at its largest.
        corpus: URI of the corpus artifact.
        bags: URI of the bag manifests.
        checkpoints: URI of the directory of this bag's checkpoints.
        target: URI at which the model is published.
        fingerprint: Hash of everything that determines the weights.
        parents: Artifacts from which the model is made.
        submission_id: Submission id of the Ray job, if there is one.
        progress_actor: Handle of the `boom_ray.train.progress_actor.ProgressActor`.
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
    progress_actor: Any

"""The arms of the study: which models each trains, and how it merges them.

Each feature that makes bags differ (settings of their own, averaged checkpoints, learned coefficients) is one
more entry of `ARMS`.
"""

from dataclasses import dataclass

from boom_ray.recipe import MergeMethod


@dataclass(frozen=True)
class Training:
    """One recipe: the models of its bags.

    Attributes:
        ratios: Percentage of every task in each bag.
        epochs: Passes over each bag.
        member: Trainings that differ only in this number differ in the seed of bags, batches and negatives.
        rate: Multiple of the arm's learning rate.
    """

    ratios: tuple[float, ...] = (100,)
    epochs: int = 1
    member: int = 0
    rate: float = 1.0


@dataclass(frozen=True)
class Arm:
    """A way to make one model.

    Attributes:
        trainings: Its models, in order; none for the base model itself.
        method: How they are merged, if there are several.
    """

    name: str
    trainings: tuple[Training, ...] = ()
    method: MergeMethod = "multislerp"


ARMS = [
    Arm("base"),
    Arm("full once", (Training(),)),
    Arm("full three times", (Training(epochs=3),)),
    Arm("soup of three seeds", tuple(Training(member=member) for member in range(3)), method="linear"),
    Arm("{80,100}", (Training((80, 100)),)),
    Arm("{20,40,60,80,100}", (Training((20, 40, 60, 80, 100)),)),
    Arm("{60,60,60}", (Training((60, 60, 60)),)),
    Arm("three rates", tuple(Training(member=m, rate=rate) for m, rate in enumerate((0.5, 1.0, 2.0)))),
]

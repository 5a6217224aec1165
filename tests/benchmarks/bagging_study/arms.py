"""The arms of the study: which models each trains, and how it merges them."""

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
        temperature: Of the loss.
        whole: The tasks number `whole`, `whole` + 3, … have all their rows in each bag; None to treat all
            tasks alike.
        averaged: Publish the mean of the weights at the last steps, see `Study.recipe`.
    """

    ratios: tuple[float, ...] = (100,)
    epochs: int = 1
    member: int = 0
    rate: float = 1.0
    temperature: float = 0.05
    whole: int | None = None
    averaged: bool = False


@dataclass(frozen=True)
class Arm:
    """A way to make one model.

    Attributes:
        trainings: Its models, in order; none for the base model itself.
        method: How they are merged, if there are several.
        learned: Learn the coefficients on the development tasks, from those of the method.
    """

    name: str
    trainings: tuple[Training, ...] = ()
    method: MergeMethod = "multislerp"
    learned: bool = False


RATES = tuple(Training(member=m, rate=rate) for m, rate in enumerate((0.5, 1.0, 2.0)))
TEMPERATURES = tuple(Training(member=m, temperature=t) for m, t in enumerate((0.03, 0.05, 0.08)))
MIXTURES = tuple(Training((40,), member=member, whole=member) for member in range(3))

ARMS = [
    Arm("base"),
    Arm("full once", (Training(),)),
    Arm("full three times", (Training(epochs=3),)),
    Arm("full three times, averaged", (Training(epochs=3, averaged=True),)),
    Arm("soup of three seeds", tuple(Training(member=member) for member in range(3)), method="linear"),
    Arm("{80,100}", (Training((80, 100)),)),
    Arm("{20,40,60,80,100}", (Training((20, 40, 60, 80, 100)),)),
    Arm("{60,60,60}", (Training((60, 60, 60)),)),
    Arm("three rates", RATES),
    Arm("three temperatures", TEMPERATURES),
    Arm("three mixtures", MIXTURES),
    Arm("three rates, learned", RATES, learned=True),
    Arm("three mixtures, learned", MIXTURES, learned=True),
]

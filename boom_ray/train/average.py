"""The mean of the weights at several steps of a bag, kept while it trains (arXiv 1803.05407).

The steps and their shares are known before the first one. So one weighted sum, in fp32 on the host of rank 0,
is all that is kept, however many steps there are.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from boom_ray.recipe import Average
from boom_ray.train.fragments import Fragment
from boom_ray.train.master_weights import master_weights
from boom_ray.train.partitions import shape_of, trainable

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def averaged_steps(average: Average | None, num_steps: int) -> dict[int, float]:
    """The steps whose weights are averaged, counted back from the last one, with their shares.

    A bag that is too short for `last` steps has fewer.

    Args:
        average: None to average nothing.
        num_steps: Optimizer steps of the bag.

    Returns:
        Step -> share, first to last; the shares sum to 1.
    """
    if average is None:
        return {}
    steps = list(range(num_steps, 0, -average.every_steps))[: average.last]
    shares = [1.0 if average.decay is None else average.decay**age for age in range(len(steps))]
    return {step: share / sum(shares) for step, share in zip(steps[::-1], shares[::-1], strict=True)}


class WeightAverage:
    """The weighted sum of the fp32 weights at some steps, on rank 0. Every method runs on every rank.

    Attributes:
        steps: Share of each step, see `averaged_steps`.
    """

    def __init__(self, engine: "DeepSpeedEngine", model: nn.Module, steps: dict[int, float]) -> None:
        self.engine, self.model, self.steps = engine, model, steps
        self._sums: dict[str, Tensor] = {}

    def begin(self, step: int) -> None:
        """Make room for the sum, if the weights of any step up to this one are averaged."""
        if self.engine.global_rank == 0 and not self._sums and step >= min(self.steps, default=step + 1):
            for name, parameter in trainable(self.model).items():
                self._sums[name] = torch.zeros(shape_of(parameter))

    def after_step(self, step: int) -> None:
        """Add the weights after a step, if they are averaged."""
        if step not in self.steps:
            return
        self.begin(step)
        for name, weight in master_weights(self.engine, self.model):
            if self.engine.global_rank == 0:
                self._sums[name].add_(weight.to("cpu", torch.float32), alpha=self.steps[step])

    def fragments(self) -> list[Fragment]:
        """The sum as part of a checkpoint; empty on other ranks than the first."""
        sums = self._sums.items()
        return [Fragment(f"average/{name}", total.numel(), 0, total.view(-1)) for name, total in sums]

    def weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The average after the last step, as `trained_weights` returns the weights of that step."""
        return {name: weight.to(dtype) for name, weight in self._sums.items()}

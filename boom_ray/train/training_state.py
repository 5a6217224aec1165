"""The training state of a bag apart from its weights: part of checkpoints, and of the model's record."""

import math
import time
from typing import Any

from pydantic import BaseModel, ConfigDict

from boom_ray.artifacts.contents import SelfCheck, TrainingMetrics


class TrainingState(BaseModel):
    """The progress of one bag.

    Attributes:
        step: Completed optimizer steps.
        loss: Loss of the last step; NaN before the first.
        tokens: Tokens of distinct texts so far.
        seconds: Training time so far, over all attempts.
        started: Start of the first attempt, in seconds since 1970.
        check: Result of the retrieval check before training and, at the end, after it.
        num_ranks: Number of ranks.
    """

    model_config = ConfigDict(frozen=True)

    step: int
    loss: float
    tokens: int
    seconds: float
    started: float
    check: SelfCheck
    num_ranks: int

    @classmethod
    def initial(cls, num_ranks: int, score: float | None) -> "TrainingState":
        """The state before the first step, with the score of the base model in the retrieval check."""
        return cls(
            step=0,
            loss=math.nan,
            tokens=0,
            seconds=0.0,
            started=time.time(),
            check=SelfCheck(before=score),
            num_ranks=num_ranks,
        )

    @classmethod
    def from_checkpoint(cls, values: dict[str, Any]) -> "TrainingState":
        """Read the state in the manifest of a checkpoint."""
        return cls.model_validate(values)

    def to_checkpoint(self) -> dict[str, Any]:
        """The state as plain values for the manifest of a checkpoint."""
        return self.model_dump()

    def metrics(self) -> TrainingMetrics:
        """The state as the record of the model keeps it."""
        return TrainingMetrics(**self.model_dump(exclude={"started"}))

    def after_step(self, loss: float, tokens: int, seconds: float) -> "TrainingState":
        """The state after one more step of so many tokens and seconds."""
        return self.model_copy(
            update={
                "step": self.step + 1,
                "loss": loss,
                "tokens": self.tokens + tokens,
                "seconds": self.seconds + seconds,
            }
        )

    def after_training(self, score: float | None) -> "TrainingState":
        """The state with the score of the trained model in the retrieval check."""
        return self.model_copy(update={"check": self.check.model_copy(update={"after": score})})

"""What a person should be warned of while a bag is trained, each once, with what to try."""

from collections import deque
from collections.abc import Iterator

WINDOW = 50  # steps
COLLAPSED = 0.95  # mean cosine of different texts


class Watch:
    """Looks at the last steps of one bag.

    Args:
        max_grad_norm: Norm above which gradients are clipped.
    """

    def __init__(self, max_grad_norm: float) -> None:
        self.max_grad_norm = max_grad_norm
        self.first_loss: float | None = None
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.clipped: deque[bool] = deque(maxlen=WINDOW)
        self.similarities: deque[float] = deque(maxlen=5)
        self._said: set[str] = set()

    def warnings(self, loss: float, grad_norm: float, similarity: float) -> list[str]:
        """Take in one step.

        Args:
            loss: Of the step's batch.
            grad_norm: Before clipping.
            similarity: Mean cosine of the different texts of the batch.

        Returns:
            What has not been said before.
        """
        self.losses.append(loss)
        self.clipped.append(grad_norm > self.max_grad_norm)
        self.similarities.append(similarity)
        if self.first_loss is None and len(self.losses) == WINDOW:
            self.first_loss = sum(self.losses) / WINDOW
            self.losses.clear()
        new = [text for text in self._seen() if text not in self._said]
        self._said.update(new)
        return new

    def _seen(self) -> Iterator[str]:
        mean = sum(self.losses) / len(self.losses) if self.losses else 0.0
        if self.first_loss is not None and len(self.losses) == WINDOW and mean > 0.99 * self.first_loss:
            yield (
                f"the loss has not moved in {2 * WINDOW} steps. "
                "Try a higher train.learning_rate, or look at the task's positives and negatives"
            )
        if len(self.clipped) == WINDOW and all(self.clipped):
            yield (
                f"every gradient of {WINDOW} steps was clipped at {self.max_grad_norm:g}. "
                "Try a lower train.learning_rate, or a higher train.max_grad_norm"
            )
        if len(self.similarities) == 5 and min(self.similarities) > COLLAPSED:
            yield (
                f"all embeddings look alike (mean cosine above {COLLAPSED}). "
                "Try a lower train.learning_rate, a higher train.temperature, and check base_model.pooling"
            )

"""Warnings about a bag while it trains, each issued once and with a remedy."""

from collections import deque
from collections.abc import Iterator

WINDOW = 50  # steps
COLLAPSE_WINDOW = 5  # steps
COLLAPSE_SIMILARITY = 0.95  # mean cosine of distinct texts


class TrainingDiagnostics:
    """Watches the metrics of one bag for a stalled loss, constant clipping and collapsed embeddings.

    Args:
        max_grad_norm: Norm above which gradients are clipped.
    """

    def __init__(self, max_grad_norm: float) -> None:
        self.max_grad_norm = max_grad_norm
        self.first_loss: float | None = None  # mean of the first window
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.clipped: deque[bool] = deque(maxlen=WINDOW)
        self.similarities: deque[float] = deque(maxlen=COLLAPSE_WINDOW)
        self._issued: set[str] = set()

    def update(self, loss: float, grad_norm: float, similarity: float) -> list[str]:
        """Add the metrics of one step.

        Args:
            loss: Loss of the step's batch.
            grad_norm: Norm of the gradient before clipping.
            similarity: Mean cosine of the distinct texts of the batch.

        Returns:
            New warnings.
        """
        self.losses.append(loss)
        self.clipped.append(grad_norm > self.max_grad_norm)
        self.similarities.append(similarity)
        if self.first_loss is None and len(self.losses) == WINDOW:
            self.first_loss = sum(self.losses) / WINDOW
            self.losses.clear()  # the next window is compared with this one
        new = [text for text in self._findings() if text not in self._issued]
        self._issued.update(new)
        return new

    def _findings(self) -> Iterator[str]:
        mean = sum(self.losses) / len(self.losses) if self.losses else 0.0
        if self.first_loss is not None and len(self.losses) == WINDOW and mean > 0.99 * self.first_loss:
            yield (
                f"the loss has not decreased in {2 * WINDOW} steps. "
                "Try a higher train.learning_rate, and check the positives and negatives of the tasks"
            )
        if len(self.clipped) == WINDOW and all(self.clipped):
            yield (
                f"the gradients of all the last {WINDOW} steps were clipped at {self.max_grad_norm:g}. "
                "Try a lower train.learning_rate, or a higher train.max_grad_norm"
            )
        if len(self.similarities) == COLLAPSE_WINDOW and min(self.similarities) > COLLAPSE_SIMILARITY:
            yield (
                f"the embeddings have collapsed (mean cosine above {COLLAPSE_SIMILARITY}). "
                "Try a lower train.learning_rate, a higher train.temperature, and check base_model.pooling"
            )

"""The metrics log: one line of `metrics.jsonl` and one value of each gauge of Ray's metrics per step."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from typing import Any

from ray.util.metrics import Gauge

from boom_ray.artifacts.record import METRICS_LOG
from boom_ray.runtime import scratch

PREFIX = "boom_ray_train_"
GAUGES = {
    "loss": "Loss of the last global batch",
    "grad_norm": "Norm of the gradient before clipping",
    "learning_rate": "Learning rate of the last step",
    "tokens_per_second": "Tokens of distinct texts per second, over all ranks of the bag",
    "padding_fraction": "Fraction of padding among the tokens a rank computes",
    "truncated_fraction": "Fraction of the texts of a global batch that reach their maximum length",
    "distinct_fraction": "Distinct texts as a fraction of all texts of a global batch",
    "similarity": "Mean cosine of the distinct texts of a global batch",
    "feed_wait": "Seconds that the step waited for its batch, on the rank that waited longest",
    "num_ranks": "Ranks of the bag",
    "mfu": "Floating point operations of the model over the measured matrix product rate of the device",
}


@dataclass(frozen=True)
class StepMetrics:
    """The metrics of one optimizer step; see `GAUGES`.

    Attributes:
        step: Number of the step, from 1.
        time: End of the step, in seconds since 1970.
        task: Task of the batch.
        tokens: Tokens of the distinct texts of the batch.
        mfu: Model FLOPs utilization; None on CPUs.
    """

    step: int
    time: float
    task: str
    loss: float
    tokens: int
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    padding_fraction: float
    truncated_fraction: float
    distinct_fraction: float
    similarity: float
    feed_wait: float
    num_ranks: int
    mfu: float | None = None


class MetricsLog:
    """The metrics of all steps of one bag so far; only rank 0 writes it.

    Args:
        tags: Labels of the gauges.
    """

    def __init__(self, tags: dict[str, str]) -> None:
        self.path = os.path.join(scratch.directory("metrics"), METRICS_LOG)
        self.restore(b"")
        self.gauges = {name: Gauge(PREFIX + name, text, tuple(tags)) for name, text in GAUGES.items()}
        for gauge in self.gauges.values():
            gauge.set_default_tags(tags)

    def append(self, metrics: StepMetrics) -> None:
        """Append one step, and update the gauges."""
        values: dict[str, Any] = {name: value for name, value in asdict(metrics).items() if value is not None}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        for name, gauge in self.gauges.items():
            if name in values:
                gauge.set(values[name])

    def copy_to(self, directory: str) -> None:
        """Copy the log into a model directory."""
        shutil.copyfile(self.path, os.path.join(directory, METRICS_LOG))

    def content(self) -> bytes:
        """The log so far."""
        with open(self.path, "rb") as file:
            return file.read()

    def restore(self, content: bytes) -> None:
        """Replace the log with that of a checkpoint, so that repeated steps are logged once."""
        with open(self.path, "wb") as file:
            file.write(content)

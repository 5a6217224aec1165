"""What each step of a bag was like: a line of `metrics.jsonl`, gauges in Ray's metrics, and warnings."""

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from ray.util.metrics import Gauge
from torch import Tensor, nn

from boom_ray.runtime import scratch

FILE = "metrics.jsonl"
PREFIX = "boom_ray_train_"
GAUGES = {
    "loss": "Loss of the last global batch",
    "grad_norm": "Norm of the gradient before clipping",
    "learning_rate": "Learning rate of the last step",
    "tokens_per_second": "Tokens of distinct texts a second, over all ranks of the bag",
    "padding_fraction": "Share of the tokens a rank computes that are padding",
    "truncated_fraction": "Share of the texts of a global batch that fill their maximum length",
    "distinct_fraction": "Distinct texts among all texts of a global batch",
    "similarity": "Mean cosine of the distinct texts of a global batch",
    "mfu": "Floating point operations of the model over the measured rate of the device's matrix product",
}


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step over `tokens` of distinct texts, which ended at `time` (seconds since 1970).

    See `GAUGES`; on CPUs `mfu` is None.
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
    mfu: float | None = None


class Journal:
    """All steps of one bag so far, on its first rank."""

    def __init__(self, tags: dict[str, str]) -> None:
        self.path = os.path.join(scratch.directory("journal"), FILE)
        self.gauges = {name: Gauge(PREFIX + name, text, tuple(tags)) for name, text in GAUGES.items()}
        for gauge in self.gauges.values():
            gauge.set_default_tags(tags)

    def add(self, metrics: StepMetrics) -> None:
        """Append one step, and show it in the dashboard."""
        values: dict[str, Any] = {name: value for name, value in asdict(metrics).items() if value is not None}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        for name, gauge in self.gauges.items():
            if name in values:
                gauge.set(values[name])

    def write_to(self, directory: str) -> None:
        """Copy all lines into a checkpoint or a model."""
        if os.path.isfile(self.path):
            shutil.copyfile(self.path, os.path.join(directory, FILE))

    def read_from(self, directory: str) -> None:
        """Go on after the lines of a checkpoint."""
        kept = os.path.join(directory, FILE)
        if os.path.isfile(kept):
            shutil.copyfile(kept, self.path)


def mean_similarity(embeddings: Tensor) -> float:
    """Mean cosine of all pairs of different rows of a [n, d] matrix of unit vectors; 0 for a single row."""
    count = len(embeddings)
    total = embeddings.double().sum(0).square().sum().item()
    return (total - count) / max(1, count * (count - 1))


def padding_fraction(lengths: np.ndarray, chunks: list[np.ndarray]) -> float:
    """Share of padding in the batches that hold the texts of each chunk."""
    computed = sum(len(chunk) * int(lengths[chunk].max()) for chunk in chunks if len(chunk))
    real = sum(int(lengths[chunk].sum()) for chunk in chunks)
    return 1 - real / computed if computed else 0.0


def flops_per_token(model: nn.Module) -> int:
    """Of the forward and backward pass: six per weight that multiplies (arXiv 2001.08361, §2.1), four if it
    is frozen."""
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    weights = [weight for weight in model.parameters() if id(weight) not in embeddings]
    return sum((6 if weight.requires_grad else 4) * weight.numel() for weight in weights)


def measured_flops(device: torch.device, dtype: torch.dtype, size: int = 4096, repeats: int = 20) -> float:
    """Floating point operations a second of a matrix product on a device."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def seconds(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            product = left @ right
        product[0, 0].item()
        return time.perf_counter() - started

    seconds(1)
    return repeats * 2 * size**3 / seconds(repeats)

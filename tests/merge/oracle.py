"""Textbook merges of whole vectors in float64, without a Gram matrix; and ours, on real files."""

import math
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from boom_ray.artifacts.tensors import read_places
from boom_ray.merge.check_inputs import check_inputs
from boom_ray.merge.inputs import MergeInput
from boom_ray.merge.merge_job import MergeJob
from boom_ray.merge.methods import METHODS
from boom_ray.merge.settings import resolve_weights
from boom_ray.merge.shards import Shard
from boom_ray.merge.stream import PROCESS_BYTES, merge_shard
from boom_ray.recipe import Merge
from boom_ray.recipe.execution import MergeExecution

# Half a unit in the last place; 16-bit types are computed in float32, whose half unit comes on top.
FLOOR = {
    torch.float32: 2.0**-24 * (1 + 1e-6),
    torch.bfloat16: 2.0**-8 + 2.0**-22,
    torch.float16: 2.0**-11 + 2.0**-22,
}


def textbook(
    method: str,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor | None,
    settings: Merge | None = None,
) -> Tensor:
    """One merged tensor, in float64."""
    settings = settings or Merge()
    origin = torch.zeros((), dtype=torch.float64) if base is None else base.double()
    deltas = [(tensor.double() - origin).flatten() for tensor in tensors]
    formula: Any = globals()[f"_{method}"]
    merged: Tensor = settings.scale * formula(deltas, list(weights), settings)
    if settings.origin is not None:
        merged = merged + (1 - settings.scale) * deltas[settings.origin]
    return merged.view(tensors[0].shape) + origin


def _sum(weights: Sequence[float], vectors: Sequence[Tensor]) -> Tensor:
    return (torch.stack(list(vectors)) * torch.tensor(weights, dtype=torch.float64)[:, None]).sum(0)


def _linear(deltas: list[Tensor], weights: list[float], settings: Merge) -> Tensor:
    return _sum(weights, deltas)


def _task_arithmetic(deltas: list[Tensor], weights: list[float], settings: Merge) -> Tensor:
    return _sum(weights, deltas)


def _directions(deltas: list[Tensor], weights: list[float]) -> tuple[list[Tensor], list[float], float]:
    """Unit vectors of inputs with a direction, their weights, and the weighted mean of all norms."""
    directed = [(d / d.norm(), w) for d, w in zip(deltas, weights, strict=True) if d.norm() > 0]
    length = math.fsum(w * d.norm().item() for d, w in zip(deltas, weights, strict=True))
    return [u for u, _ in directed], [w for _, w in directed], length


def _multislerp(deltas: list[Tensor], weights: list[float], settings: Merge) -> Tensor:
    units, present, length = _directions(deltas, weights)
    if not units:
        return torch.zeros_like(deltas[0])
    mean = _sum(present, units)
    return length * mean / mean.norm()


def _karcher(deltas: list[Tensor], weights: list[float], settings: Merge) -> Tensor:
    units, present, length = _directions(deltas, weights)
    if not units:
        return torch.zeros_like(deltas[0])
    present = [w * math.fsum(weights) / math.fsum(present) for w in present]
    mean = _sum(present, units)
    mean = mean / mean.norm()
    for _ in range(settings.iterations):
        logs = []
        for unit in units:
            across = unit - (unit @ mean) * mean
            angle = torch.atan2(across.norm(), unit @ mean)
            logs.append(across * (angle / across.norm() if across.norm() > 1e-14 else 1.0))
        step = _sum(present, logs)
        size = step.norm()
        if size < 1e-14:
            break
        mean = torch.cos(size) * mean + torch.sin(size) * step / size
    return length * mean


def _slerp(deltas: list[Tensor], weights: list[float], settings: Merge, linear: float = 0.9995) -> Tensor:
    first, second = deltas
    norms = first.norm() * second.norm()
    cosine = (first @ second / torch.where(norms > 0, norms, 1.0)).clamp(-1, 1)
    if cosine.abs() > linear:
        return _sum(weights, deltas)
    angle = torch.arccos(cosine)
    return sum(torch.sin(w * angle) / torch.sin(angle) * d for w, d in zip(weights, deltas, strict=True))  # type: ignore[return-value]


def _nuslerp(deltas: list[Tensor], weights: list[float], settings: Merge) -> Tensor:
    return _slerp(deltas, weights, settings, 1 - 1e-12)


def _model_stock(deltas: list[Tensor], weights: list[float], settings: Merge) -> Tensor:
    count = len(deltas)
    norms = [d.norm() for d in deltas]
    cosines = [
        (deltas[i] @ deltas[j] / (norms[i] * norms[j])).item() if norms[i] and norms[j] else 0.0
        for i in range(count)
        for j in range(i)
    ]
    cosine = math.fsum(cosines) / len(cosines)
    denominator = 1 + (count - 1) * cosine
    share = count * cosine / denominator if abs(denominator) > 1e-6 else 0.0
    return share * sum(deltas) / count  # type: ignore[operator]


def _ties(deltas: list[Tensor], weights: list[float], settings: Merge) -> Tensor:
    kept = []
    for delta, weight in zip(deltas, weights, strict=True):
        count = max(int(settings.density * delta.numel()), 1) if delta.numel() else 0
        magnitude = delta.float().abs()
        smallest = magnitude.sort(descending=True).values[count - 1] if count else 0.0
        kept.append(torch.where(magnitude >= smallest, weight * delta, 0.0))
    stacked = torch.stack(kept)
    sign = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agrees = stacked.sign() == sign
    total = (agrees * torch.tensor(weights, dtype=torch.float64)[:, None]).sum(0)
    return (stacked * agrees).sum(0) / torch.where(total == 0, 1.0, total)


def ours(
    method: str,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor | None,
    dtype: torch.dtype,
    settings: Merge | None = None,
    memory_bytes: int = 1 << 30,
) -> Tensor:
    """The same merge by the streaming implementation: files in, a file out, without Ray."""
    with tempfile.TemporaryDirectory() as root:
        changes = {"method": method, "dtype": str(dtype).removeprefix("torch.")}
        job = MergeJob(
            inputs=[_input(root, str(number), tensor) for number, tensor in enumerate(tensors)],
            base=None if base is None else _input(root, "base", base),
            settings=(settings or Merge()).model_copy(
                update={**changes, "execution": MergeExecution.model_construct(memory_bytes=memory_bytes)}
            ),
            weights=list(weights),
            target=os.path.join(root, "out"),
        )
        merge_shard(job, Shard("model.safetensors", ["w"]), lambda written: None)
        return load_file(os.path.join(root, "out", "model.safetensors"))["w"]


def _input(root: str, name: str, tensor: Tensor) -> MergeInput:
    uri = os.path.join(root, f"{name}.safetensors")
    save_file({"w": tensor.contiguous()}, uri, {"format": "pt"})
    return MergeInput(uri, read_places(uri), root)


def streamed(models: list[str], base: str | None, settings: Merge, target: str) -> dict[str, Tensor]:
    """A merge of whole models as one worker computes it."""
    checked = check_inputs(models, base)
    job = MergeJob(
        inputs=checked.models,
        base=checked.base if settings.space == "deltas" else None,
        settings=settings,
        weights=resolve_weights(checked.models, settings),
        target=target,
    )
    merge_shard(job, Shard("model.safetensors", list(job.inputs[0].places)), lambda written: None)
    return load_file(os.path.join(target, "model.safetensors"))


SMALL = PROCESS_BYTES  # leaves memory for one block per model: larger tensors are read in chunks

GRAM_METHODS = [name for name, method in METHODS.items() if method.coefficients]
EXACT_METHODS = [name for name in METHODS if name != "dare_linear"]

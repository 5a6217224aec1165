"""Merges by the book, on whole vectors in float64 and without a Gram matrix; and ours, on real files."""

import math
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from boom_ray.artifacts.tensors import NAMES, read_places
from boom_ray.merge.actors import MergeSpec, resolve_weights
from boom_ray.merge.check import check
from boom_ray.merge.job import Job
from boom_ray.merge.methods import METHODS, Options
from boom_ray.merge.plan import Shard
from boom_ray.merge.source import Source
from boom_ray.merge.stream import PROCESS_BYTES, merge_shard

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
    options: Options | None = None,
) -> Tensor:
    """One merged tensor, in float64."""
    options = options or Options()
    origin = torch.zeros((), dtype=torch.float64) if base is None else base.double()
    deltas = [(tensor.double() - origin).flatten() for tensor in tensors]
    formula: Any = globals()[f"_{method}"]
    merged: Tensor = formula(deltas, list(weights), options)
    return merged.view(tensors[0].shape) + origin


def _sum(weights: Sequence[float], vectors: Sequence[Tensor]) -> Tensor:
    return (torch.stack(list(vectors)) * torch.tensor(weights, dtype=torch.float64)[:, None]).sum(0)


def _linear(deltas: list[Tensor], weights: list[float], options: Options) -> Tensor:
    return _sum(weights, deltas)


def _task_arithmetic(deltas: list[Tensor], weights: list[float], options: Options) -> Tensor:
    return options.scale * _sum(weights, deltas)


def _directions(deltas: list[Tensor], weights: list[float]) -> tuple[list[Tensor], list[float], float]:
    """Unit vectors of what has a direction, their weights, and the weighted mean of all norms."""
    present = [(d / d.norm(), w) for d, w in zip(deltas, weights, strict=True) if d.norm() > 0]
    length = math.fsum(w * d.norm().item() for d, w in zip(deltas, weights, strict=True))
    return [u for u, _ in present], [w for _, w in present], length


def _multislerp(deltas: list[Tensor], weights: list[float], options: Options) -> Tensor:
    units, shares, length = _directions(deltas, weights)
    if not units:
        return torch.zeros_like(deltas[0])
    mean = _sum(shares, units)
    return length * mean / mean.norm()


def _karcher(deltas: list[Tensor], weights: list[float], options: Options) -> Tensor:
    units, shares, length = _directions(deltas, weights)
    if not units:
        return torch.zeros_like(deltas[0])
    mean = _sum(shares, units)
    mean = mean / mean.norm()
    for _ in range(options.iterations):
        logs = []
        for unit in units:
            across = unit - (unit @ mean) * mean
            angle = torch.atan2(across.norm(), unit @ mean)
            logs.append(across * (angle / across.norm() if across.norm() > 1e-14 else 1.0))
        step = _sum(shares, logs)
        size = step.norm()
        if size < 1e-14:
            break
        mean = torch.cos(size) * mean + torch.sin(size) * step / size
    return length * mean


def _slerp(deltas: list[Tensor], weights: list[float], options: Options, linear: float = 0.9995) -> Tensor:
    first, second = deltas
    if not first.norm() or not second.norm():
        return _sum(weights, deltas)
    cosine = (first @ second / (first.norm() * second.norm())).clamp(-1, 1)
    if cosine.abs() > linear:
        return _sum(weights, deltas)
    angle = torch.arccos(cosine)
    return sum(torch.sin(w * angle) / torch.sin(angle) * d for w, d in zip(weights, deltas, strict=True))  # type: ignore[return-value]


def _nuslerp(deltas: list[Tensor], weights: list[float], options: Options) -> Tensor:
    return _slerp(deltas, weights, options, 1 - 1e-12)


def _model_stock(deltas: list[Tensor], weights: list[float], options: Options) -> Tensor:
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


def _ties(deltas: list[Tensor], weights: list[float], options: Options) -> Tensor:
    kept = []
    for delta, weight in zip(deltas, weights, strict=True):
        count = max(int(options.density * delta.numel()), 1) if delta.numel() else 0
        magnitude = delta.float().abs()
        smallest = magnitude.sort(descending=True).values[count - 1] if count else 0.0
        kept.append(torch.where(magnitude >= smallest, weight * delta, 0.0))
    stacked = torch.stack(kept)
    sign = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agrees = stacked.sign() == sign
    total = (agrees * torch.tensor(weights, dtype=torch.float64)[:, None]).sum(0)
    return options.scale * (stacked * agrees).sum(0) / torch.where(total == 0, 1.0, total)


def ours(
    method: str,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor | None,
    dtype: torch.dtype,
    options: Options | None = None,
    memory_bytes: int = 1 << 30,
) -> Tensor:
    """The same by the streaming merge: files in, a file out, without Ray."""
    with tempfile.TemporaryDirectory() as root:
        sources = [_source(root, str(number), tensor) for number, tensor in enumerate(tensors)]
        job = Job(
            sources=sources,
            base=None if base is None else _source(root, "base", base),
            method=method,
            weights=list(weights),
            options=options or Options(),
            dtype=NAMES[str(dtype).removeprefix("torch.")],
            target=os.path.join(root, "out"),
            memory_bytes=memory_bytes,
        )
        merge_shard(job, Shard("model.safetensors", ["w"]), lambda done: None)
        return load_file(os.path.join(root, "out", "model.safetensors"))["w"]


def _source(root: str, name: str, tensor: Tensor) -> Source:
    uri = os.path.join(root, f"{name}.safetensors")
    save_file({"w": tensor.contiguous()}, uri, {"format": "pt"})
    return Source(uri, read_places(uri), root)


def streamed(models: list[str], base: str | None, spec: MergeSpec, target: str) -> dict[str, Tensor]:
    """A merge of whole models as one worker does it."""
    inputs = check(models, base)
    job = Job(
        sources=inputs.sources,
        base=inputs.base if spec.space == "deltas" else None,
        method=spec.method,
        weights=resolve_weights(inputs.sources, spec),
        options=spec.options,
        dtype=NAMES[spec.dtype],
        target=target,
        memory_bytes=spec.memory_bytes,
    )
    merge_shard(job, Shard("model.safetensors", list(inputs.sources[0].places)), lambda done: None)
    return load_file(os.path.join(target, "model.safetensors"))


SMALL = PROCESS_BYTES  # leaves room for one block per model: every larger tensor goes by in chunks

GRAM_METHODS = [name for name, method in METHODS.items() if method.coefficients]
EXACT_METHODS = [name for name in METHODS if name != "dare_linear"]

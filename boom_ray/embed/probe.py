"""How this cluster's CPUs encode fastest: a short measurement before a long run, stored with the output.

A run that goes on after it was killed, maybe on other machines, goes on with what the first measured, so
that all vectors of an output are computed alike.
"""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from boom_ray import storage
from boom_ray.embed.options import Precision

FILE = "compute.json"
NUM_TEXTS, MAX_TOKENS = 32, 128
LEAST_COSINE = 0.99995  # on the sample, so that a whole corpus stays above 0.9999
LEAST_GAIN = 1.1  # more processes must be worth their memory, and a shorter number its digits


@dataclass(frozen=True)
class Compute:
    """How vectors are computed.

    Attributes:
        precision: Of weights and activations.
        threads: Of one encoder; None takes its share of the CPUs.
    """

    precision: Precision
    threads: int | None = None


def stored(directory: str) -> Compute | None:
    """What an earlier run into the same output measured."""
    place = storage.join(directory, FILE)
    return Compute(**json.loads(storage.read_bytes(place))) if storage.is_file(place) else None


def store(directory: str, compute: Compute) -> None:
    """Remember it for a run that goes on."""
    storage.write_bytes(storage.join(directory, FILE), json.dumps(asdict(compute)).encode())


def measure(model: str, texts: list[str], num_cpus: int) -> Compute:
    """Try numbers of threads, then bfloat16 where the CPU multiplies it.

    Args:
        model: URI of a model directory.
        texts: Texts as they will be embedded, prompt included.
        num_cpus: CPUs that encoders share.
    """
    import torch

    from boom_ray.model import directory

    local = storage.local_directory(model)
    encoder = directory.load_encoder(local).for_inference()
    token_ids = encoder.tokenize(texts[:NUM_TEXTS], MAX_TOKENS)
    powers = [1 << exponent for exponent in range(num_cpus.bit_length()) if 1 << exponent <= num_cpus]
    best, most = num_cpus, 0.0
    for threads in sorted({*powers, num_cpus}, reverse=True):
        torch.set_num_threads(threads)
        rate = num_cpus // threads / _seconds(encoder, token_ids)
        if rate > most * LEAST_GAIN:
            best, most = threads, rate
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return Compute("float32", best)
    torch.set_num_threads(best)
    whole, seconds = encoder.encode_tokens(token_ids), _seconds(encoder, token_ids)
    short = directory.load_encoder(local, dtype=torch.bfloat16).for_inference()
    cosine = float(np.min((whole * short.encode_tokens(token_ids)).sum(1)))
    faster = seconds > _seconds(short, token_ids) * LEAST_GAIN
    return Compute("bfloat16" if faster and cosine >= LEAST_COSINE else "float32", best)


def _seconds(encoder: Any, token_ids: list[list[int]]) -> float:
    """The shorter of two times, after one that does not count."""
    spent = []
    for _ in range(3):
        since = time.perf_counter()
        encoder.encode_tokens(token_ids)
        spent.append(time.perf_counter() - since)
    return min(spent[1:])

"""The fastest way to encode on this cluster's CPUs: a short measurement before a long run.

The result is stored in every partition. A run that resumes, possibly on other machines, uses the stored
result, so that all vectors of an output are computed alike.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from boom_ray import storage
from boom_ray.embed.embed_options import Precision

if TYPE_CHECKING:
    from boom_ray.model.encoder import Encoder
    from boom_ray.model.tokens import Tokens

NUM_TEXTS, MAX_TOKENS = 32, 128
MIN_COSINE = 0.99995  # on the sample, so that a whole corpus stays above 0.9999
MIN_SPEEDUP = 1.1  # below it, more processes are not worth their memory, nor bfloat16 its rounding


@dataclass(frozen=True)
class ComputeSettings:
    """How encoders compute.

    Attributes:
        precision: Precision of weights and activations.
        threads: Threads of one encoder; None: its share of the CPUs.
    """

    precision: Precision
    threads: int | None = None


def measure(model: str, texts: list[str], num_cpus: int) -> ComputeSettings:
    """Try numbers of threads, then bfloat16 if the CPU multiplies it.

    Args:
        model: URI of a model directory.
        texts: A sample of the texts, prompts included.
        num_cpus: CPUs that encoders share.
    """
    import torch

    from boom_ray.model import directory
    from boom_ray.model.packed_weights import cpu_multiplies

    local = storage.local_directory(model)
    encoder = directory.load_encoder(local).for_inference()
    tokens = encoder.tokenize(texts[:NUM_TEXTS], MAX_TOKENS)
    powers = [1 << exponent for exponent in range(num_cpus.bit_length()) if 1 << exponent <= num_cpus]
    best_threads, best_rate = num_cpus, 0.0
    for threads in sorted({*powers, num_cpus}, reverse=True):
        torch.set_num_threads(threads)
        # Several encoders of few threads are assumed to scale: a probe of them would cost a load for each.
        rate = num_cpus // threads / _seconds(encoder, tokens)
        if rate > best_rate * MIN_SPEEDUP:
            best_threads, best_rate = threads, rate
    if not cpu_multiplies(torch.bfloat16):
        return ComputeSettings("float32", best_threads)
    torch.set_num_threads(best_threads)
    expected, seconds = encoder.encode_tokens(tokens), _seconds(encoder, tokens)
    rounded = directory.load_encoder(local, dtype=torch.bfloat16).for_inference()
    cosine = float(np.min((expected * rounded.encode_tokens(tokens)).sum(1)))
    is_faster = seconds > _seconds(rounded, tokens) * MIN_SPEEDUP
    return ComputeSettings("bfloat16" if is_faster and cosine >= MIN_COSINE else "float32", best_threads)


def _seconds(encoder: "Encoder", tokens: "Tokens") -> float:
    """The shorter of two times, after a warm-up."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        encoder.encode_tokens(tokens)
        times.append(time.perf_counter() - started)
    return min(times[1:])

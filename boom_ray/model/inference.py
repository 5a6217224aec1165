"""Encoders for inference: the precision of each device, and the threads of a process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from boom_ray.model import directory
from boom_ray.model.encoder import Encoder
from boom_ray.recipe import BaseModelSource


def precision(device: str) -> torch.dtype:
    """Type of weights and activations: bfloat16 on GPUs; float32 on CPUs, most of which emulate the other."""
    return torch.float32 if device == "cpu" else torch.bfloat16


def load(local: str, device: str, source: BaseModelSource | None = None) -> Encoder:
    """Load the model in a local directory; see `directory.load_encoder`."""
    encoder = directory.load_encoder(local, source, device=device, dtype=precision(device))
    return encoder.for_inference()


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with `number` CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""What a line was measured with."""

import os
import platform
from importlib.metadata import version

import torch

PACKAGES = ("torch", "ray", "transformers", "sentence-transformers")


def environment(gpu: bool) -> dict[str, str]:
    """Python, libraries, and the device."""
    device = torch.cuda.get_device_name() if gpu else f"{os.cpu_count()} CPU cores"
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "device": device,
    }

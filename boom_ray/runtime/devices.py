"""The device on which models are computed: chosen by what the cluster has or may start, never by accident."""

from typing import Literal, get_args

from boom_ray.errors import ClusterError, InputError
from boom_ray.runtime import capacity

Device = Literal["auto", "cuda", "cpu"]


def resolve(device: Device) -> str:
    """The device that is meant on the connected cluster.

    Args:
        device: `auto`: GPUs if a node has any, or if the autoscaler may start one that has, else CPUs.

    Returns:
        `cuda` or `cpu`.

    Raises:
        InputError: if it is none of these.
    """
    if device not in get_args(Device):
        raise InputError(f"device {device!r}: unknown; allowed: {', '.join(get_args(Device))}")
    if device == "auto":
        return "cuda" if capacity.potential({"GPU": 1}) else "cpu"
    return device


def check(device: str) -> None:
    """Refuse to compute on a GPU where torch finds none; called in the process that loads a model.

    Raises:
        ClusterError: if the device is `cuda` and there is none.
    """
    import socket

    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ClusterError(
            f"node {socket.gethostname()}: device cuda was chosen, but torch {torch.__version__} finds no "
            "GPU there. Install NVIDIA's driver and torch for CUDA on the nodes, or choose device cpu"
        )

"""The settings of an endpoint."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from boom_ray.errors import InputError
from boom_ray.runtime import devices
from boom_ray.runtime.devices import Device
from boom_ray.serve.limits import Limits
from boom_ray.serve.served_model import ServedModel

PASS_TOKENS = {"cpu": 2048, "cuda": 32768}


@dataclass(frozen=True)
class ServeSettings:
    """Settings of an endpoint.

    Attributes:
        pass_tokens: Tokens in one forward pass, from which all limits follow; the default suits the device.
        min_replicas: Minimum encoder replicas of each model.
        max_replicas: Maximum encoder replicas of each model. Ray Serve scales with the load between the two.
        device: Device of the encoders; `auto`: GPUs if the cluster has any when the endpoint starts, or its
            autoscaler may start some.
        gpus_per_replica: GPUs of an encoder replica, if they run on GPUs; replicas share one below 1.

    Raises:
        InputError: if a number is not allowed.
    """

    pass_tokens: int | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    device: Device = "auto"
    gpus_per_replica: float = 1.0

    # As part of the arguments of an application builder: a misspelled key in a config file is an error.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        for name in ("pass_tokens", "min_replicas", "max_replicas"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; allowed: 1 or more")
        if not 0 < self.gpus_per_replica <= 1:
            raise InputError(
                f"gpus_per_replica is {self.gpus_per_replica:g}; allowed: above 0 and at most 1, on which a "
                "model runs"
            )

    def limits(self, models: list[ServedModel]) -> Limits:
        """The limits of an endpoint of these models, on the cluster this process is connected to."""
        longest = max(model.max_length for model in models)
        pass_tokens = self.pass_tokens or max(PASS_TOKENS[self.resolved_device()], longest)
        return Limits(pass_tokens, longest, self.max_replicas)

    def resolved_device(self) -> str:
        """The device of encoders on the cluster this process is connected to."""
        return devices.resolve(self.device)

    def encoder_resources(self) -> dict[str, float]:
        """Ray resources of an encoder replica, on the cluster this process is connected to."""
        if self.resolved_device() == "cpu":
            return {"CPU": 0.5}
        return {"CPU": 1, "GPU": self.gpus_per_replica}

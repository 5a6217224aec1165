"""What a section knows of the bench: where it computes, how large it is, and where its results go."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")
NO_LIMIT: Mapping[str, float] = {}


@dataclass(frozen=True)
class Bench:
    """One section of the bench.

    Attributes:
        section: Its name.
        tiny: Whether all shapes are tiny and the device is the CPU: a test of the bench, not of a device.
        scratch: Local directory that all sections share; it is deleted at the end.
        out: Local directory of profiles and logs.
    """

    section: str
    tiny: bool
    scratch: str
    out: str

    @property
    def device(self) -> str:
        """The torch device to measure."""
        return "cpu" if self.tiny else "cuda"

    @property
    def card(self) -> str:
        """The name of that device."""
        return "CPU" if self.tiny else torch.cuda.get_device_name()

    def sized(self, full: T, tiny: T) -> T:
        """One of two sizes."""
        return tiny if self.tiny else full

    def path(self, *names: str) -> str:
        """A path in the scratch directory."""
        return os.path.join(self.scratch, *names)

    def emit(
        self,
        case: str,
        at_least: Mapping[str, float] = NO_LIMIT,
        at_most: Mapping[str, float] = NO_LIMIT,
        **figures: Any,
    ) -> None:
        """Print one result as a JSON line.

        Args:
            case: What was measured.
            at_least: Targets of figures, by name; those that are missed on a GPU are listed in `missed`.
            at_most: The same, as upper limits.
            figures: Rates per second, seconds, fractions and counts, by name.
        """
        missed = [f"{name} >= {target:g}" for name, target in at_least.items() if figures[name] < target]
        missed += [f"{name} <= {target:g}" for name, target in at_most.items() if figures[name] > target]
        line = {"section": self.section, "case": case, "card": self.card} | {
            name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in figures.items()
        }
        if missed and not self.tiny:
            line["missed"] = missed
        print(json.dumps(line), flush=True)

"""The rates measured on a cluster, stored in the run's storage for later plans of the recipe."""

import json
from dataclasses import asdict, dataclass

from boom_ray import storage
from boom_ray.recipe import Recipe
from boom_ray.runs.layout import Layout


@dataclass(frozen=True)
class Calibration:
    """The measurements of one calibration.

    Attributes:
        gpu_type: The kind of processor measured, a key of `hardware.DATA_SHEETS`.
        num_gpus: Processors of the cluster.
        values: Measured values by the names of assumptions.
        created: ISO 8601 time.
    """

    gpu_type: str
    num_gpus: int
    values: dict[str, float]
    created: str


def stored(recipe: Recipe) -> Calibration | None:
    """The stored calibration of a recipe, if any."""
    uri = Layout(recipe.root).calibration
    return Calibration(**json.loads(storage.read_bytes(uri))) if storage.is_file(uri) else None


def store(recipe: Recipe, calibration: Calibration) -> str:
    """Store a calibration for later plans of the recipe, and return its URI."""
    uri = Layout(recipe.root).calibration
    storage.write_bytes(uri, json.dumps(asdict(calibration), indent=1).encode())
    return uri

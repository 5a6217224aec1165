"""What was measured of a cluster, as it is stored for the plans of a recipe."""

import json
from dataclasses import asdict, dataclass

from boom_ray import storage
from boom_ray.recipe import Recipe

FILE = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        gpu_type: Processors it holds for.
        num_gpus: Processors of the cluster.
        values: By the names of assumptions.
        created: When, as ISO 8601.
    """

    gpu_type: str
    num_gpus: int
    values: dict[str, float]
    created: str


def stored(recipe: Recipe) -> Calibration | None:
    """What was measured for a recipe before."""
    place = storage.join(recipe.root, FILE)
    return Calibration(**json.loads(storage.read_bytes(place))) if storage.is_file(place) else None


def store(recipe: Recipe, calibration: Calibration) -> str:
    """Keep it for plans of the recipe; returns where."""
    place = storage.join(recipe.root, FILE)
    storage.write_bytes(place, json.dumps(asdict(calibration), indent=1).encode())
    return place

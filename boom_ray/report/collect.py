"""What lies in storage of a run and one of its versions; whatever a stage has not written yet is missing."""

import json
from dataclasses import dataclass
from typing import Any

from boom_ray import storage
from boom_ray.artifacts.record import Record
from boom_ray.data.bags import name_of
from boom_ray.errors import BoomError
from boom_ray.runs import ancestry
from boom_ray.runs.versions import VERSION
from boom_ray.runs.versions import current as current_version

BASELINE = "baseline"


@dataclass(frozen=True)
class Trained:
    """A model that was trained, or is to be.

    Attributes:
        name: `bag-1`, …, `baseline`, or `update`.
        ratio: Percentage of every task's rows it was given.
        tasks: Rows of each task.
        record: None until it is published.
        steps: The lines of its `metrics.jsonl`.
    """

    name: str
    ratio: float
    tasks: dict[str, int]
    record: Record | None
    steps: list[dict[str, Any]]


@dataclass(frozen=True)
class Found:
    """All that is known of a version and of the run it belongs to.

    Attributes:
        root: `<storage>/<name>`.
        version: None while the run has no merged model.
        record: That version's.
        recipe: As it was when the run began.
        claim: What the run's name stands for, with the digest of the base model.
        request: What the update that made the version was asked; None if no update did.
        corpus: Of the update, if one made the version.
        trained: The models of all bags, and the baseline; of an update, its one model.
        comparison: With the model of the full corpus.
        distances: Between the models that were merged.
        versions: All that are published, and the `current` one.
        artifacts: Every artifact of the run, by its path below `root`.
    """

    root: str
    version: str | None
    record: Record | None
    recipe: dict[str, Any]
    claim: dict[str, Any]
    request: dict[str, Any] | None
    corpus: Record | None
    trained: list[Trained]
    comparison: dict[str, Any] | None
    distances: dict[str, Any] | None
    versions: list[str]
    current: str | None
    artifacts: dict[str, Record]

    @property
    def name(self) -> str:
        """What people call the version, or the run if it has none."""
        return " ".join(filter(None, (self.recipe["name"], self.version)))

    @property
    def bags(self) -> list[Trained]:
        """The models that are merged: all but the baseline."""
        return [model for model in self.trained if model.name != BASELINE]


def collect(root: str, version: str | None = None) -> Found:
    """Read a run.

    Args:
        root: `<storage>/<name>`.
        version: By default the current one; if there is none yet, the run as far as it is.

    Raises:
        BoomError: if there is no run at `root`, or no such version.
    """
    claim = _read_json(storage.join(root, "run.json"))
    if claim is None:
        raise BoomError(f"{root}: no run there. Give <storage>/<name> of one that has begun")
    artifacts = ancestry.artifacts_below(root)
    paths = [path for path in artifacts if VERSION.fullmatch(path.removeprefix("models/"))]
    published = [storage.name_of(path) for path in paths if path.startswith("models/")]
    if version is not None and version not in published:
        there = f"there are {', '.join(published)}" if published else "none is published yet; leave it out"
        raise BoomError(f"{root}: no version {version}; {there}")
    current = current_version(root) if published else None
    version = version or current
    request = _read_json(storage.join(root, "updates", version, "update.json")) if version else None
    inside = f"updates/{version}/" if request else ""
    directory = storage.join(root, "models", version) if version else None
    return Found(
        root=root,
        version=version,
        record=artifacts[f"models/{version}"] if version else None,
        recipe=_read_json(storage.join(root, "recipe.json")) or {"name": storage.name_of(root)},
        claim=claim,
        request=request,
        corpus=artifacts.get(f"{inside}corpus"),
        trained=_trained(root, inside, artifacts),
        comparison=None if request or not version else _read_json(storage.join(root, "comparison.json")),
        distances=_read_json(storage.join(directory, "distances.json")) if directory else None,
        versions=published,
        current=current,
        artifacts=artifacts,
    )


def _trained(root: str, inside: str, artifacts: dict[str, Record]) -> list[Trained]:
    """Every model of a run's bags, published or not; `inside` is where an update keeps its own."""
    found = []
    for manifest, names in (("bags", None), (BASELINE, [BASELINE])):
        drawn = artifacts.get(inside + manifest)
        if drawn is None:
            continue
        names = names or [name_of(index) for index in range(len(drawn.config["rows"]))]
        for name, ratio, tasks in zip(names, drawn.config["ratios"], drawn.config["tasks"], strict=True):
            path = f"{inside}models/{name}"
            steps = _read_lines(storage.join(root, path, "metrics.jsonl")) if path in artifacts else []
            found.append(Trained("update" if inside else name, ratio, tasks, artifacts.get(path), steps))
    return found


def _read_json(uri: str) -> dict[str, Any] | None:
    return json.loads(storage.read_bytes(uri)) if storage.is_file(uri) else None


def _read_lines(uri: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_bytes(uri).splitlines()] if storage.is_file(uri) else []

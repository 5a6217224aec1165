"""The stored files of a run and of one of its versions; files that do not exist yet are None or empty."""

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from boom_ray import storage
from boom_ray.artifacts.record import Record
from boom_ray.data.bags import name_of
from boom_ray.errors import NotFoundError
from boom_ray.recipe import Recipe, Task
from boom_ray.runs import ancestry
from boom_ray.runs.identity import recipe_of
from boom_ray.runs.versions import VERSION
from boom_ray.runs.versions import current as current_version

BASELINE = "baseline"


class RecordedUpdate(BaseModel):
    """The settings of an update, in its `update.json`.

    Attributes:
        parent: Version that was updated.
        tasks: The new data.
        core_percent: Percentage of the earlier rows that were trained on again.
        flat: Whether all models before it were merged again, instead of the parent with the update.
    """

    model_config = ConfigDict(extra="allow")  # the page shows the whole file

    parent: str
    tasks: list[Task]
    core_percent: float
    flat: bool


class AngleTable(BaseModel):
    """Norms [M] and angles [M, M] in degrees between M models; None where a norm is zero."""

    norms: list[float]
    angles: list[list[float | None]]


class ModelDistances(BaseModel):
    """The `distances.json` of a merged model: `all` of the whole models, `layers` by layer."""

    all: AngleTable
    layers: dict[str, AngleTable]


@dataclass(frozen=True)
class LoggedStep:
    """The values of one training step that the page shows; `time` is in seconds since 1970."""

    time: float
    loss: float
    padding_fraction: float
    truncated_fraction: float


@dataclass(frozen=True)
class TrainedModel:
    """A model of the run, trained or still to be trained.

    Attributes:
        name: `bag-1`, …, `baseline`, or `update`.
        ratio: Percentage of every task's rows in its bag.
        tasks: Rows of each task in its bag.
        record: None until it is published.
        steps: Its metrics log.
    """

    name: str
    ratio: float
    tasks: dict[str, int]
    record: Record | None
    steps: list[LoggedStep]


@dataclass(frozen=True)
class RunContents:
    """The files of a run, as far as they concern one version.

    Attributes:
        root: `<storage>/<name>`.
        version: None while the run has no merged model.
        record: That of the version.
        recipe: The recipe with which the run began.
        base_digest: Identity of the base model's content.
        request: The settings of the update that made the version; None if no update did.
        corpus: That of the update, if one made the version.
        trained: The models of all bags and the baseline; of an update, its one model.
        comparison: Comparison with the baseline.
        distances: Norms and angles of the models that were merged.
        versions: All published versions.
        current: The version to serve.
        artifacts: Every artifact of the run, by its path relative to `root`.
    """

    root: str
    version: str | None
    record: Record | None
    recipe: Recipe
    base_digest: str
    request: RecordedUpdate | None
    corpus: Record | None
    trained: list[TrainedModel]
    comparison: dict[str, Any] | None
    distances: ModelDistances | None
    versions: list[str]
    current: str | None
    artifacts: dict[str, Record]

    @property
    def name(self) -> str:
        """The name of the run and of the version, if there is one."""
        return " ".join(filter(None, (self.recipe.name, self.version)))

    @property
    def bags(self) -> list[TrainedModel]:
        """The models that are merged: all but the baseline."""
        return [model for model in self.trained if model.name != BASELINE]


def collect(root: str, version: str | None = None) -> RunContents:
    """Read a run.

    Args:
        root: `<storage>/<name>`.
        version: By default the current one, or none while the run is not finished.

    Raises:
        NotFoundError: if there is no run at `root`, or no such version.
    """
    claim = _read_json(storage.join(root, "run.json"))
    if claim is None:
        raise NotFoundError(f"{root}: no run there. Give <storage>/<name> of a run that has begun")
    artifacts = ancestry.artifacts_below(root)
    paths = [path for path in artifacts if VERSION.fullmatch(path.removeprefix("models/"))]
    published = [storage.name_of(path) for path in paths if path.startswith("models/")]
    if version is not None and version not in published:
        existing = f"published: {', '.join(published)}" if published else "none is published yet; omit it"
        raise NotFoundError(f"{root}: no version {version}; {existing}")
    current = current_version(root) if published else None
    version = version or current
    request = _read_json(storage.join(root, "updates", version, "update.json")) if version else None
    inside = f"updates/{version}/" if request else ""
    directory = storage.join(root, "models", version) if version else None
    distances = _read_json(storage.join(directory, "distances.json")) if directory else None
    return RunContents(
        root=root,
        version=version,
        record=artifacts[f"models/{version}"] if version else None,
        recipe=recipe_of(root),
        base_digest=claim["base_model"]["digest"],
        request=RecordedUpdate.model_validate(request) if request else None,
        corpus=artifacts.get(f"{inside}corpus"),
        trained=_trained(root, inside, artifacts),
        comparison=None if request or not version else _read_json(storage.join(root, "comparison.json")),
        distances=ModelDistances.model_validate(distances) if distances else None,
        versions=published,
        current=current,
        artifacts=artifacts,
    )


def _trained(root: str, inside: str, artifacts: dict[str, Record]) -> list[TrainedModel]:
    """Every model of a run's bags, published or not.

    Args:
        inside: Path of the update below `root`, with a `/` at the end; empty for the run itself.
    """
    found = []
    for manifest, names in (("bags", None), (BASELINE, [BASELINE])):
        drawn = artifacts.get(inside + manifest)
        if drawn is None:
            continue
        names = names or [name_of(index) for index in range(len(drawn.config["rows"]))]
        for name, ratio, tasks in zip(names, drawn.config["ratios"], drawn.config["tasks"], strict=True):
            path = f"{inside}models/{name}"
            steps = _read_steps(storage.join(root, path, "metrics.jsonl")) if path in artifacts else []
            found.append(TrainedModel("update" if inside else name, ratio, tasks, artifacts.get(path), steps))
    return found


def _read_json(uri: str) -> dict[str, Any] | None:
    return json.loads(storage.read_bytes(uri)) if storage.is_file(uri) else None


def _read_steps(uri: str) -> list[LoggedStep]:
    if not storage.is_file(uri):
        return []
    names = LoggedStep.__dataclass_fields__
    lines = map(json.loads, storage.read_bytes(uri).splitlines())
    return [LoggedStep(**{name: line[name] for name in names}) for line in lines]

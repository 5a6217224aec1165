"""The stored files of a run and of one of its versions; files that do not exist yet are None or empty."""

import itertools
import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from boom_ray import storage
from boom_ray.artifacts import AnyRecord, BagsRecord, CorpusRecord, ModelRecord
from boom_ray.artifacts.contents import Comparison
from boom_ray.artifacts.record import DISTANCES, METRICS_LOG
from boom_ray.data.bags import BASELINE, name_of
from boom_ray.errors import NotFoundError
from boom_ray.recipe import Bag, Recipe
from boom_ray.runs import ancestry
from boom_ray.runs import identity as identities
from boom_ray.runs.identity import recipe_of
from boom_ray.runs.layout import Layout
from boom_ray.runs.updates import UpdateRequest, read_request
from boom_ray.runs.versions import VERSION
from boom_ray.runs.versions import current as current_version


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
    num_ranks: int


@dataclass(frozen=True)
class TrainedModel:
    """A model of the run, trained or still to be trained.

    Attributes:
        name: `bag-1`, …, `baseline`, or `update`.
        bag: Its entry in the recipe.
        tasks: Rows of each task in its bag.
        record: None until it is published.
        steps: Its metrics log.
    """

    name: str
    bag: Bag
    tasks: dict[str, int]
    record: ModelRecord | None
    steps: list[LoggedStep]

    @property
    def ranks(self) -> list[int]:
        """Numbers of ranks that trained it, one after the other."""
        return [number for number, _ in itertools.groupby(step.num_ranks for step in self.steps)]


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
    record: ModelRecord | None
    recipe: Recipe
    base_digest: str
    request: UpdateRequest | None
    corpus: CorpusRecord | None
    trained: list[TrainedModel]
    comparison: Comparison | None
    distances: ModelDistances | None
    versions: list[str]
    current: str | None
    artifacts: dict[str, AnyRecord]

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
    identity, layout = identities.find(root), Layout(root)
    if identity is None:
        raise NotFoundError(f"{root}: no run there. Give <storage>/<name> of a run that has begun")
    artifacts = ancestry.artifacts_below(root)
    paths = [path for path in artifacts if VERSION.fullmatch(path.removeprefix("models/"))]
    published = [storage.name_of(path) for path in paths if path.startswith("models/")]
    if version is not None and version not in published:
        existing = f"published: {', '.join(published)}" if published else "none is published yet; omit it"
        raise NotFoundError(f"{root}: no version {version}; {existing}")
    current = current_version(root) if published else None
    version = version or current
    request = read_request(root, version) if version else None
    inside = layout.update(version) if request and version else layout
    corpus = artifacts.get(layout.relative(inside.corpus))
    record = artifacts[layout.relative(layout.model(version))] if version else None
    distances = _read_json(storage.join(layout.model(version), DISTANCES)) if version else None
    return RunContents(
        root=root,
        version=version,
        record=record if isinstance(record, ModelRecord) else None,
        recipe=recipe_of(root),
        base_digest=identity.base_model["digest"],
        request=request,
        corpus=corpus if isinstance(corpus, CorpusRecord) else None,
        trained=_trained(layout, inside, artifacts),
        comparison=None if request or not version else _comparison(layout.comparison),
        distances=ModelDistances.model_validate(distances) if distances else None,
        versions=published,
        current=current,
        artifacts=artifacts,
    )


def _trained(layout: Layout, inside: Layout, artifacts: dict[str, AnyRecord]) -> list[TrainedModel]:
    """Every model of a run's bags, published or not.

    Args:
        inside: The layout of the run, or of the update, that trained the models.
    """
    found = []
    is_update = inside != layout
    for uri, names in ((inside.bags, None), (inside.baseline, [BASELINE])):
        drawn = artifacts.get(layout.relative(uri))
        if not isinstance(drawn, BagsRecord):
            continue
        names = names or [name_of(index) for index in range(len(drawn.config.rows))]
        for name, bag, tasks in zip(names, drawn.config.ratios, drawn.config.tasks, strict=True):
            model = inside.model(name)
            record = artifacts.get(layout.relative(model))
            record = record if isinstance(record, ModelRecord) else None
            steps = _read_steps(storage.join(model, METRICS_LOG)) if record else []
            found.append(TrainedModel("update" if is_update else name, bag, tasks, record, steps))
    return found


def _comparison(uri: str) -> Comparison | None:
    return Comparison.model_validate_json(storage.read_bytes(uri)) if storage.is_file(uri) else None


def _read_json(uri: str) -> dict[str, Any] | None:
    return json.loads(storage.read_bytes(uri)) if storage.is_file(uri) else None


def _read_steps(uri: str) -> list[LoggedStep]:
    if not storage.is_file(uri):
        return []
    names = LoggedStep.__dataclass_fields__
    lines = map(json.loads, storage.read_bytes(uri).splitlines())
    return [LoggedStep(**{name: line[name] for name in names}) for line in lines]

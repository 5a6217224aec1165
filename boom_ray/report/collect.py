"""What lies in storage of a run and one of its versions; whatever a stage has not written yet is missing."""

import json
from dataclasses import dataclass
from typing import Any

from boom_ray import storage
from boom_ray.artifacts import AnyRecord, BagsRecord, CorpusRecord, ModelRecord
from boom_ray.artifacts.contents import Comparison
from boom_ray.artifacts.record import DISTANCES, METRICS_LOG
from boom_ray.data.bags import BASELINE, name_of
from boom_ray.errors import NotFoundError
from boom_ray.recipe import Recipe
from boom_ray.runs import ancestry
from boom_ray.runs import identity as identities
from boom_ray.runs.identity import RunIdentity, recipe_of
from boom_ray.runs.layout import Layout
from boom_ray.runs.updates import UpdateRequest, read_request
from boom_ray.runs.versions import VERSION
from boom_ray.runs.versions import current as current_version


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
    record: ModelRecord | None
    steps: list[dict[str, Any]]


@dataclass(frozen=True)
class Found:
    """All that is known of a version and of the run it belongs to.

    Attributes:
        root: `<storage>/<name>`.
        version: None while the run has no merged model.
        record: That version's.
        recipe: As it was when the run began.
        identity: Everything that the run's name stands for, with the digest of the base model.
        request: The request of the update that made the version; None if no update did.
        corpus: Of the update, if one made the version.
        trained: The models of all bags, and the baseline; of an update, its one model.
        comparison: With the model of the full corpus.
        distances: Between the models that were merged.
        versions: All that are published, and the `current` one.
        artifacts: Every artifact of the run, by its path below `root`.
    """

    root: str
    version: str | None
    record: ModelRecord | None
    recipe: Recipe
    identity: RunIdentity
    request: UpdateRequest | None
    corpus: CorpusRecord | None
    trained: list[Trained]
    comparison: Comparison | None
    distances: dict[str, Any] | None
    versions: list[str]
    current: str | None
    artifacts: dict[str, AnyRecord]

    @property
    def name(self) -> str:
        """What people call the version, or the run if it has none."""
        return " ".join(filter(None, (self.recipe.name, self.version)))

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
    identity, layout = identities.find(root), Layout(root)
    if identity is None:
        raise NotFoundError(f"{root}: no run there. Give <storage>/<name> of a run that has begun")
    artifacts = ancestry.artifacts_below(root)
    paths = [path for path in artifacts if VERSION.fullmatch(path.removeprefix("models/"))]
    published = [storage.name_of(path) for path in paths if path.startswith("models/")]
    if version is not None and version not in published:
        there = f"there are {', '.join(published)}" if published else "none is published yet; leave it out"
        raise NotFoundError(f"{root}: no version {version}; {there}")
    current = current_version(root) if published else None
    version = version or current
    request = read_request(root, version) if version else None
    inside = layout.update(version) if request and version else layout
    corpus = artifacts.get(layout.relative(inside.corpus))
    record = artifacts[layout.relative(layout.model(version))] if version else None
    return Found(
        root=root,
        version=version,
        record=record if isinstance(record, ModelRecord) else None,
        recipe=recipe_of(root),
        identity=identity,
        request=request,
        corpus=corpus if isinstance(corpus, CorpusRecord) else None,
        trained=_trained(layout, inside, artifacts),
        comparison=None if request or not version else _comparison(layout.comparison),
        distances=_read_json(storage.join(layout.model(version), DISTANCES)) if version else None,
        versions=published,
        current=current,
        artifacts=artifacts,
    )


def _trained(layout: Layout, inside: Layout, artifacts: dict[str, AnyRecord]) -> list[Trained]:
    """Every model of a run's bags, published or not; `inside` is the layout that trained them."""
    found = []
    is_update = inside != layout
    for uri, names in ((inside.bags, None), (inside.baseline, [BASELINE])):
        drawn = artifacts.get(layout.relative(uri))
        if not isinstance(drawn, BagsRecord):
            continue
        names = names or [name_of(index) for index in range(len(drawn.config.rows))]
        for name, ratio, tasks in zip(names, drawn.config.ratios, drawn.config.tasks, strict=True):
            model = inside.model(name)
            record = artifacts.get(layout.relative(model))
            record = record if isinstance(record, ModelRecord) else None
            steps = _read_lines(storage.join(model, METRICS_LOG)) if record else []
            found.append(Trained("update" if is_update else name, ratio, tasks, record, steps))
    return found


def _comparison(uri: str) -> Comparison | None:
    return Comparison.model_validate_json(storage.read_bytes(uri)) if storage.is_file(uri) else None


def _read_json(uri: str) -> dict[str, Any] | None:
    return json.loads(storage.read_bytes(uri)) if storage.is_file(uri) else None


def _read_lines(uri: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_bytes(uri).splitlines()] if storage.is_file(uri) else []

"""The updates of a run: their requests, which a rerun resumes, and the versions they make."""

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from boom_ray import artifacts, storage
from boom_ray.data.rows import data_files
from boom_ray.errors import InputError, StorageError
from boom_ray.recipe import Merge, MergeMethod, Recipe, Task, UpdateMerge, identity, reading
from boom_ray.runs import versions
from boom_ray.runs.layout import Layout

REQUIREMENT = re.compile(r"(old_mean|new_mean)\s*>=\s*([+-]?\d+(?:\.\d+)?)\s*%")


class UpdateRequest(BaseModel):
    """The settings of an update.

    Attributes:
        parent: Version it adds to; None for the current one, or for the parent of an earlier update with the
            same settings.
        tasks: The new data.
        core_percent: Percentage of every earlier task that is trained on again.
        method: Merge method; None for the recipe's.
        weights: `equal` (the paper) or `mass`, by the rows behind each model.
        flat: Merge all models that contribute, instead of the parent with the update.
        scale: 0 is the parent, 1 the merge of parent and update; may exceed 1. A flat merge has the scale of
            the recipe.
        new_evaluation: Directory of tasks for the new data.
        requirements: Least relative change of a mean compared with the parent, in percent, by its name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parent: str | None
    tasks: list[Task] = Field(min_length=1)
    core_percent: float = Field(40.0, gt=0, le=100)
    method: MergeMethod | None = None
    weights: Literal["equal", "mass"] = "equal"
    flat: bool = False
    scale: float = 1.0
    new_evaluation: str | None = None
    requirements: dict[Literal["old_mean", "new_mean"], float] = {}

    @field_validator("requirements", mode="before")
    @classmethod
    def _parse_text(cls, value: object) -> object:
        return parse_requirements(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_a_parent_to_scale_from(self) -> "UpdateRequest":
        if self.flat and self.scale != 1:
            raise ValueError(
                f"scale: got {self.scale:g} with flat, which does not merge the parent; allowed: 1"
            )
        return self

    def merge(self, recipe: Recipe) -> Merge:
        """Settings of the merge of the update.

        The scale of the recipe is in the parent already: merged with its update, it is not applied again.
        """
        method = self.method or recipe.merge.method
        changes = {"method": method, "weights": {"equal": "equal", "mass": "size"}[self.weights]}
        if self.flat:
            return recipe.merge.model_copy(update=changes)
        return UpdateMerge.model_validate(recipe.merge.model_dump() | changes | {"scale": self.scale})


class StoredRequest(BaseModel):
    """The content of `update.json`: a request whose parent is known, and the identity of its child."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: str
    parent: str
    request: UpdateRequest


def parse_requirements(text: str) -> dict[str, float]:
    """`old_mean >= -0.5%, new_mean >= +1%` as percentages by name.

    Raises:
        InputError: if the text has another form.
    """
    found = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = REQUIREMENT.fullmatch(part)
        if match is None:
            raise InputError(
                f"requirements: {part!r}; expected old_mean >= -0.5% or new_mean >= +1%, joined by commas"
            )
        found[match[1]] = float(match[2])
    return found


def read_tasks(uri: str) -> list[Task]:
    """New data: a file or directory of rows, which becomes a retrieval task, or a YAML list of tasks.

    Raises:
        InputError: if the YAML is not a list of tasks.
    """
    if not storage.name_of(uri).endswith((".yaml", ".yml")):
        name = re.sub(r"[^A-Za-z0-9._-]", "-", storage.name_of(uri).split(".")[0].strip("*-")) or "new"
        return [Task(name=name, path=uri)]
    try:
        values = reading.parse(storage.read_bytes(uri), uri)
        return TypeAdapter(list[Task]).validate_python(values, context={"directory": storage.parent_of(uri)})
    except ValidationError as error:
        problems = reading.explain(error, Task)
        raise InputError.of(problems, f"{uri}: not a list of tasks as in a recipe's data.tasks:") from error


def find(recipe: Recipe, request: UpdateRequest) -> tuple[UpdateRequest, str] | None:
    """The same request as it was begun before, with its parent, and the version it makes; None if new."""
    mine = _identity(recipe, request)
    for version, stored in reversed(list(_all(recipe.root))):
        if stored.identity == mine and request.parent in (None, stored.parent):
            return request.model_copy(update={"parent": stored.parent}), version
    return None


def begin(recipe: Recipe, request: UpdateRequest) -> str:
    """Take the next version for a new request; no other driver can take the same one."""
    content, layout = _encoded(recipe, request), Layout(recipe.root)
    while True:
        taken = [*storage.list_names(layout.updates), *storage.list_names(layout.models)]
        newest = max(int(name[1:]) for name in taken if versions.VERSION.fullmatch(name))
        version = f"v{newest + 1:04d}"
        if storage.create(layout.request(version), content):
            return version


def renew(recipe: Recipe, request: UpdateRequest, version: str) -> None:
    """Store the evaluation data and requirements of a request that is made again."""
    storage.write_bytes(Layout(recipe.root).request(version), _encoded(recipe, request))


def read_request(root: str, version: str) -> UpdateRequest | None:
    """The request of the update that made a version; None if no update made it.

    Raises:
        StorageError: if another version of boom-ray wrote it.
    """
    stored = _read(Layout(root).request(version))
    return stored.request if stored else None


def ancestors(root: str, version: str) -> list[tuple[str, UpdateRequest]]:
    """The updates that led to a version, its own last."""
    request = read_request(root, version)
    if request is None:
        return []
    assert request.parent is not None
    return [*ancestors(root, request.parent), (version, request)]


def _encoded(recipe: Recipe, request: UpdateRequest) -> bytes:
    stored = StoredRequest(identity=_identity(recipe, request), parent=str(request.parent), request=request)
    return stored.model_dump_json(indent=1).encode()


def _read(uri: str) -> StoredRequest | None:
    if not storage.is_file(uri):
        return None
    try:
        return StoredRequest.model_validate_json(storage.read_bytes(uri))
    except ValidationError as error:
        raise StorageError(f"{uri}: not an update of this version of boom-ray: {error}") from error


def _all(root: str) -> Iterator[tuple[str, StoredRequest]]:
    layout = Layout(root)
    for version in storage.list_names(layout.updates):
        stored = _read(layout.request(version))
        if stored:
            yield version, stored


def _identity(recipe: Recipe, request: UpdateRequest) -> str:
    """Identity of everything that changes the weights of the child, except the parent."""
    content = [artifacts.hash_file(uri).xxh3_128 for task in request.tasks for uri in data_files(task.path)]
    tasks = [identity(task) for task in request.tasks]
    merge = identity(request.merge(recipe))
    return artifacts.fingerprint([tasks, content, request.core_percent, merge, request.flat])

"""What an update is asked, and the version it makes: kept in the run, so that a rerun finds what it began."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from boom_ray import artifacts, recipe_file, storage
from boom_ray.data.rows import data_files
from boom_ray.errors import BoomError
from boom_ray.recipe import Merge, MergeMethod, Recipe, Task, identity
from boom_ray.runs import versions

REQUIREMENT = re.compile(r"(old_mean|new_mean)\s*>=\s*([+-]?\d+(?:\.\d+)?)\s*%")
FILE = "update.json"


@dataclass(frozen=True)
class Request:
    """What an update is asked to do.

    Attributes:
        parent: Version it adds to; None for the current one, or for that to which the same was added before.
        tasks: The new data.
        core_percent: Share of every earlier task that is trained on again.
        method: How the update is merged; None as the recipe has it.
        weights: `equal` (the paper) or `mass`, by the rows behind each model.
        flat: Merge all models that contribute, instead of the parent with the update.
        new_evaluation: Directory of tasks for the new data.
        requirements: Least relative change of a mean against the parent, in percent, by its name.
    """

    parent: str | None
    tasks: list[Task]
    core_percent: float = 40
    method: MergeMethod | None = None
    weights: Literal["equal", "mass"] = "equal"
    flat: bool = False
    new_evaluation: str | None = None
    requirements: tuple[tuple[str, float], ...] = ()

    def merge(self, recipe: Recipe) -> Merge:
        """How the update is merged."""
        method = self.method or recipe.merge.method
        weights = {"equal": "equal", "mass": "size"}[self.weights]
        return recipe.merge.model_copy(update={"method": method, "weights": weights})


def parse_requirements(text: str) -> tuple[tuple[str, float], ...]:
    """`old_mean >= -0.5%, new_mean >= +1%` as names and percentages.

    Raises:
        BoomError: if it reads otherwise.
    """
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = REQUIREMENT.fullmatch(part)
        if match is None:
            raise BoomError(
                f"--require {part!r}: expected old_mean >= -0.5% or new_mean >= +1%, joined by commas"
            )
        found.append((match[1], float(match[2])))
    return tuple(found)


def read_tasks(uri: str) -> list[Task]:
    """New data: a file or directory of rows, which becomes a retrieval task, or a YAML list of tasks.

    Raises:
        BoomError: if the YAML is no list of tasks.
    """
    if not uri.endswith((".yaml", ".yml")):
        name = re.sub(r"[^A-Za-z0-9._-]", "-", storage.name_of(uri).split(".")[0].strip("*-")) or "new"
        return [Task(name=name, path=uri)]
    try:
        tasks = TypeAdapter(list[Task]).validate_python(yaml.safe_load(storage.read_bytes(uri)))
    except yaml.YAMLError as error:
        raise BoomError(f"{uri}: not valid YAML: {error}") from error
    except ValidationError as error:
        problems = recipe_file.explain(error, Task)
        raise BoomError.of(problems, f"{uri}: not a list of tasks as in a recipe's data.tasks:") from error
    return [
        task.model_copy(update={"path": storage.absolute(task.path, os.path.dirname(uri))}) for task in tasks
    ]


def find(recipe: Recipe, request: Request) -> tuple[Request, str] | None:
    """The same request as it was made before, with its parent, and the version it makes; None if new."""
    mine = _identity(recipe, request)
    for version, said in reversed(list(_all(recipe.root))):
        if said["identity"] == mine and request.parent in (None, said["parent"]):
            return replace(request, parent=said["parent"]), version
    return None


def begin(recipe: Recipe, request: Request) -> str:
    """Take the next version for a new request, of which no other driver can have the same."""
    content, updates = _written(recipe, request), storage.join(recipe.root, "updates")
    while True:
        taken = [*storage.list_names(updates), *storage.list_names(storage.join(recipe.root, "models"))]
        newest = max(int(name[1:]) for name in taken if versions.VERSION.fullmatch(name))
        version = f"v{newest + 1:04d}"
        if storage.create(storage.join(updates, version, FILE), content):
            return version


def renew(recipe: Recipe, request: Request, version: str) -> None:
    """Keep what a request that is made once more is measured on and requires now."""
    storage.write_bytes(storage.join(recipe.root, "updates", version, FILE), _written(recipe, request))


def _written(recipe: Recipe, request: Request) -> bytes:
    tasks = [task.model_dump() for task in request.tasks]
    said = {**asdict(request), "tasks": tasks, "identity": _identity(recipe, request)}
    return json.dumps(said, indent=1).encode()


def read_request(root: str, version: str) -> Request | None:
    """What the update that made a version was asked; None if no update made it."""
    place = storage.join(root, "updates", version, FILE)
    if not storage.is_file(place):
        return None
    said = json.loads(storage.read_bytes(place))
    tasks = [Task.model_validate(task) for task in said.pop("tasks")]
    requirements = tuple(map(tuple, said.pop("requirements")))
    del said["identity"]
    return Request(tasks=tasks, requirements=requirements, **said)


def ancestors(root: str, version: str) -> list[tuple[str, Request]]:
    """The updates that led to a version, its own last."""
    request = read_request(root, version)
    if request is None:
        return []
    assert request.parent is not None
    return [*ancestors(root, request.parent), (version, request)]


def _all(root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    updates = storage.join(root, "updates")
    for version in storage.list_names(updates):
        place = storage.join(updates, version, FILE)
        if storage.is_file(place):
            yield version, json.loads(storage.read_bytes(place))


def _identity(recipe: Recipe, request: Request) -> str:
    """Of everything that changes the weights of the child, but the parent."""
    content = [artifacts.hash_file(uri).xxh3_128 for task in request.tasks for uri in data_files(task.path)]
    tasks = [identity(task) for task in request.tasks]
    merge = identity(request.merge(recipe))
    return artifacts.fingerprint([tasks, content, request.core_percent, merge, request.flat])

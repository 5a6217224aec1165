"""The identity of a run: the recipe and base model that its name stands for."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from boom_ray import artifacts, storage
from boom_ray.artifacts import Parent
from boom_ray.errors import ConflictError, NotFoundError, StorageError
from boom_ray.model import directory
from boom_ray.recipe import Data, Recipe, identity
from boom_ray.runs.layout import Layout


class RunIdentity(BaseModel):
    """Every setting that changes the weights, by section of the recipe; and the digest of the base model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_model: dict[str, Any]
    bags: dict[str, Any]
    train: dict[str, Any]
    merge: dict[str, Any]


def claim(recipe: Recipe) -> Parent:
    """Take the run's name for this recipe.

    Returns:
        The identity of the base model.

    Raises:
        InputError: if the base model is too small for the recipe.
        ConflictError: listing every setting that differs, if the name stands for another recipe.
        NotFoundError: if the recipe chooses by development tasks, and they are missing.
    """
    base, layout = directory.identify(recipe.base_model.path), Layout(recipe.root)
    directory.check_base(recipe.base_model, recipe.train)
    ours = RunIdentity(
        base_model={**identity(recipe.base_model), "digest": base.digest},
        bags=identity(recipe.bags),
        train=identity(recipe.train),
        merge=_merge_identity(recipe),
    )
    theirs = find(recipe.root)
    if theirs is None:
        storage.write_bytes(layout.recipe, recipe.model_dump_json(indent=1).encode())
        storage.write_bytes(layout.identity, ours.model_dump_json(indent=1).encode())
        return base
    different = [
        line
        for section in RunIdentity.model_fields
        for line in _differences(getattr(theirs, section), getattr(ours, section), section)
    ]
    if different:
        raise ConflictError.of(
            different,
            f"{recipe.root}: holds the run of another recipe. Give this one another name, or restore:",
        )
    return base


def _merge_identity(recipe: Recipe) -> dict[str, Any]:
    """Settings of the merge, and the content of the tasks that one is chosen on."""
    found, development = identity(recipe.merge), recipe.evaluate.development
    if recipe.merge.scale != "auto" or development is None:
        return found
    if not storage.list_files(development):
        raise NotFoundError(f"{development}: no files there. Restore the tasks of evaluate.development")
    return found | {"development": artifacts.hash_tree(development)}


def find(root: str) -> RunIdentity | None:
    """The identity of the run at `root`, or None if there is no run.

    Raises:
        StorageError: if another version of boom-ray wrote it.
    """
    uri = Layout(root).identity
    if not storage.is_file(uri):
        return None
    try:
        return RunIdentity.model_validate_json(storage.read_bytes(uri))
    except ValidationError as error:
        raise StorageError(f"{uri}: not a run of this version of boom-ray: {error}") from error


def is_run(uri: str) -> bool:
    """Whether a URI is that of a run."""
    return not storage.is_hub(uri) and storage.is_file(Layout(uri).identity)


def recipe_of(root: str) -> Recipe:
    """The recipe of a run as it was when the run began.

    Raises:
        NotFoundError: if there is no run.
        StorageError: if another version of boom-ray wrote it.
    """
    uri = Layout(root).recipe
    if not storage.is_file(uri):
        raise NotFoundError(f"{root}: no run there. Give <storage>/<name> of a run that has begun")
    try:
        return Recipe.model_validate_json(storage.read_bytes(uri))
    except ValidationError as error:
        raise StorageError(f"{uri}: not a recipe of this version of boom-ray: {error}") from error


def with_data_of_run(recipe: Recipe) -> Recipe:
    """A recipe of a run with the tasks that the run began with, wherever their files are today.

    Raises:
        ConflictError: listing the tasks and the prompts that differ.
    """
    begun = recipe_of(recipe.root).data
    different = list(_differences(_settings(begun), _settings(recipe.data), "data"))
    if different:
        raise ConflictError.of(
            different,
            f"{recipe.root}: began with other data. Pass new data to `boom-ray update`; in the recipe, "
            "restore:",
        )
    return recipe.model_copy(update={"data": begun})


def _settings(data: Data) -> dict[str, Any]:
    """The settings that prompts and negatives depend on, by name."""
    tasks = {f"tasks {task.name}": identity(task) | {"expected_rows": None} for task in data.tasks}
    templates = {"query_template": data.query_template, "document_template": data.document_template}
    return {"instruction": data.instruction} | templates | tasks


def _differences(theirs: dict[str, Any], ours: dict[str, Any], section: str) -> Iterator[str]:
    for key in sorted(theirs.keys() | ours.keys()):
        if theirs.get(key) != ours.get(key):
            yield f"{section}.{key}: {theirs.get(key)} in the run, {ours.get(key)} in the recipe"

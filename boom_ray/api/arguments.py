"""Arguments of the API: models, runs, recipes and settings as callers pass them, checked."""

import os
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, TypeAdapter, ValidationError

from boom_ray import storage
from boom_ray.errors import InputError
from boom_ray.recipe import Recipe, reading
from boom_ray.runs import versions

T = TypeVar("T")
S = TypeVar("S", bound=BaseModel)
PathLike = str | os.PathLike[str]


@runtime_checkable
class HasModel(Protocol):
    """A result with a model, such as `RunResult`, `UpdateResult` and `MergeResult`."""

    @property
    def model(self) -> str:
        """URI of the model."""


class HasRoot(Protocol):
    """A recipe, or a result with a run, such as `RunResult` and `RunStatus`."""

    @property
    def root(self) -> str:
        """URI of the run."""


ModelLike = PathLike | HasModel  # a model directory, a run (its current version), or a result
RunLike = PathLike | HasRoot


def path(value: PathLike) -> str:
    """An absolute URI; `~` and paths relative to the working directory are resolved."""
    return storage.absolute(os.fspath(value))


def optional_path(value: PathLike | None) -> str | None:
    """As `path`; None stays None."""
    return None if value is None else path(value)


def model_uri(model: ModelLike) -> str:
    """URI of a model.

    Raises:
        NotFoundError: if a run has no version.
        InputError: if the argument is neither a path nor a result with a model.
    """
    if isinstance(model, str | os.PathLike):
        return versions.model_at(os.fspath(model))
    if isinstance(model, HasModel):
        return versions.model_at(model.model)
    raise InputError(f"model: got {model!r}; expected a URI of a model or run, or a result with a model")


def model_uris(models: ModelLike | Sequence[ModelLike]) -> list[str]:
    """URIs of one model or several."""
    if isinstance(models, str | os.PathLike | HasModel):
        return [model_uri(models)]
    return [model_uri(model) for model in models]


def run_uri(run: RunLike) -> str:
    """URI of a run."""
    # A `pathlib.Path` has a `root` too: the `/` it begins with.
    return path(run) if isinstance(run, str | os.PathLike) else run.root


def checked(recipe: Recipe) -> Recipe:
    """A recipe with absolute paths: `model_copy(update=...)` does not validate what it changes.

    Raises:
        InputError: listing every problem.
    """
    if not isinstance(recipe, Recipe):
        raise InputError(f"recipe: got {recipe!r}; expected a Recipe. Read a file with Recipe.load(path)")
    return section(Recipe, recipe.model_dump(), "not a valid recipe:")


def section(kind: type[S], values: dict[str, Any], heading: str) -> S:
    """Validate values as a section.

    Raises:
        InputError: listing every problem.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError.of(reading.explain(error, kind), heading) from None


def settings(kind: type[T], **values: Any) -> T:
    """Validate values as a dataclass of settings: types, and names from a fixed set.

    Raises:
        InputError: listing every problem.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        problems = reading.explain(error, BaseModel)
        raise InputError.of(problems, "not valid arguments:") from None


def at_least(minimum: float, **values: float | None) -> None:
    """Check lower bounds; None is allowed.

    Raises:
        InputError: listing every argument below the minimum.
    """
    problems = [
        f"{name}: got {value}; allowed: {minimum:g} or more"
        for name, value in values.items()
        if value is not None and value < minimum
    ]
    if problems:
        raise InputError.of(problems, "not valid arguments:")

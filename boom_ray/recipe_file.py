"""Reads a recipe from its file: variables, paths, and every mistake in one message."""

import difflib
import os
import re
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from boom_ray import storage
from boom_ray.errors import BoomError
from boom_ray.recipe import Recipe


def load(path: str, storage_uri: str | None = None) -> Recipe:
    """Read and check a recipe.

    Relative paths in it are relative to the file; `${NAME}` stands for an environment variable.

    Args:
        path: The YAML file.
        storage_uri: Overrides `storage`; relative to the working directory.

    Raises:
        BoomError: listing every problem, with the nearest allowed key for a key that is unknown.
    """
    if not os.path.isfile(path):
        raise BoomError(f"{path}: no such recipe")
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BoomError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise BoomError(f"{path}: a recipe is a mapping of sections: {', '.join(Recipe.model_fields)}")
    if storage_uri is not None:
        values["storage"] = storage.absolute(storage_uri)
    try:
        recipe = Recipe.model_validate(_expanded(values, path))
    except ValidationError as error:
        raise BoomError.of(explain(error, Recipe), f"{path}: not a valid recipe:") from error
    return _absolute(recipe, os.path.dirname(os.path.abspath(path)))


def _expanded(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        return {key: _expanded(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, path) for item in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise BoomError(f"{path}: {value}: the environment variable {match[1]} is not set")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", variable, value)


def _absolute(recipe: Recipe, base: str) -> Recipe:
    def resolved(section: Any, **names: str) -> Any:
        return section.model_copy(update={key: storage.absolute(value, base) for key, value in names.items()})

    data = recipe.data.model_copy(
        update={"tasks": [resolved(task, path=task.path) for task in recipe.data.tasks]}
    )
    evaluate = recipe.evaluate
    return resolved(recipe, storage=recipe.storage).model_copy(
        update={
            "base_model": resolved(recipe.base_model, path=recipe.base_model.path),
            "data": data,
            "evaluate": resolved(evaluate, data=evaluate.data) if evaluate.data else evaluate,
        }
    )


def explain(error: ValidationError, section: type[BaseModel]) -> list[str]:
    """Every mistake in a section, or in a list of such sections, by its place."""
    problems = []
    for entry in error.errors(include_url=False):
        place = ".".join(str(part) for part in entry["loc"]) or "recipe"
        if entry["type"] == "extra_forbidden":
            allowed = _allowed_keys(section, entry["loc"][:-1])
            nearest = difflib.get_close_matches(str(entry["loc"][-1]), allowed, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"allowed: {', '.join(allowed)}"
            problems.append(f"{place}: unknown key; {hint}")
        else:
            got = "" if isinstance(entry["input"], dict | list) else f", got {entry['input']!r}"
            problems.append(f"{place}: {entry['msg'].removeprefix('Value error, ')}{got}")
    return problems


def _allowed_keys(section: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys of the part of a section that a validation error points into."""
    for part in location:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_of(part))), None)

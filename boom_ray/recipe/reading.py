"""Recipe files: YAML with environment variables, and every mistake in one message."""

import difflib
import os
import re
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from boom_ray.errors import BoomError, InputError, NotFoundError


def read(path: str) -> Any:
    """The content of a YAML file.

    Raises:
        NotFoundError: if there is no such file.
        InputError: if the file is not YAML.
    """
    if not os.path.isfile(path):
        raise NotFoundError(f"{path}: no such recipe")
    with open(path, "rb") as file:
        return parse(file.read(), path)


def parse(content: bytes, where: str) -> Any:
    """Parse YAML.

    Args:
        where: The file, for errors.

    Raises:
        InputError: if it is not YAML in UTF-8.
    """
    try:
        return yaml.safe_load(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise InputError(f"{where}: not valid YAML: nested too deeply") from error
    # PyYAML raises what its conversions raise, for `2024-13-45`, `!!bool x`, `!!int ''`, `!!timestamp x`.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: not valid YAML: {error}") from error


def expand(value: Any, path: str) -> Any:
    """Replace every `${NAME}` in a recipe's strings by the environment variable.

    Args:
        path: The file, for errors.

    Raises:
        InputError: if a variable is not set.
    """
    if isinstance(value, dict):
        return {key: expand(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, path) for item in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise InputError(f"{path}: {value}: the environment variable {match[1]} is not set")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", variable, value)


def explain(error: ValidationError, section: type[BaseModel]) -> list[str]:
    """Every mistake in a section, or in a list of such sections, by its location."""
    problems = []
    for entry in error.errors(include_url=False):
        location = ".".join(str(part) for part in entry["loc"]) or "recipe"
        if entry["type"] == "extra_forbidden":
            allowed = _allowed_keys(section, entry["loc"][:-1])
            nearest = difflib.get_close_matches(str(entry["loc"][-1]), allowed, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"allowed: {', '.join(allowed)}"
            problems.append(f"{location}: unknown key; {hint}")
        else:
            # Our own errors name the value as far as it may be shown: a URI can contain a password.
            own = isinstance(entry.get("ctx", {}).get("error"), BoomError)
            got = "" if own or isinstance(entry["input"], dict | list) else f", got {entry['input']!r}"
            message = f"{entry['msg'].removeprefix('Value error, ')}{got}"
            problems.append(message if own and not entry["loc"] else f"{location}: {message}")
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

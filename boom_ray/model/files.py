"""The JSON files of a model directory, and its card: whatever is wrong with one is an error in a sentence.

Model directories come from the hub and from other tools. Keys that this program does not know are ignored
here; `boom_ray/model/modules.py` refuses those that change an embedding.
"""

import json
import os
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from boom_ray import storage
from boom_ray.artifacts.record import CARD
from boom_ray.errors import InputError
from boom_ray.recipe import reading

CONFIG = "config.json"
#: The same of the encoder that an adapter makes of its base model. With an adapter in the same directory,
#: transformers takes a `config.json` as the sign that the directory has all weights.
ADAPTED_CONFIG = "transformer_config.json"
FRONT_MATTER = re.compile(r"\A\ufeff?\s*---\s*\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)


class ModelFile(BaseModel):
    """The keys of one file that matter here, with their types; other keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


F = TypeVar("F", bound=ModelFile)


def read_json(directory: str, name: str) -> Any:
    """The content of a JSON file; None if there is no such file.

    Args:
        directory: URI of a model directory.

    Raises:
        InputError: if it is not JSON in UTF-8.
    """
    uri = storage.join(directory, name)
    if not storage.is_file(uri):
        return None
    try:
        return json.loads(storage.read_bytes(uri))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{uri}: not valid JSON: {error}. Download or publish the model again") from error


def read_object(directory: str, name: str) -> dict[str, Any]:
    """The content of a file that holds one JSON object; `{}` if there is no such file.

    Raises:
        InputError: if it holds something else.
    """
    content = read_json(directory, name)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(
            f"{storage.join(directory, name)}: got {_kind(content)}; expected a JSON object with keys"
        )
    return content


def read(directory: str, name: str, kind: type[F]) -> F:
    """The keys of a file that matter; their defaults if there is no such file, or they are null.

    Raises:
        InputError: naming each key whose value has another type.
    """
    content = {key: value for key, value in read_object(directory, name).items() if value is not None}
    return check(content, storage.join(directory, name), kind)


def check(content: Any, where: str, kind: type[F]) -> F:
    """Content of a file as `kind`.

    Args:
        where: The file, for the error.

    Raises:
        InputError: naming each key whose value is missing or has another type.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, one['loc'])) or 'content'}: "
            + ("missing" if one["type"] == "missing" else f"got {_shown(one['input'])}; {one['msg']}")
            for one in error.errors()
        ]
        raise InputError(f"{where}: {'; '.join(problems)}") from None


def config_of(directory: str) -> dict[str, Any]:
    """The configuration of a model, or of an adapter that has its own; `{}` if there is none.

    Args:
        directory: URI of a model directory.
    """
    return read_object(directory, CONFIG) or read_object(directory, ADAPTED_CONFIG)


def read_config(directory: str) -> dict[str, Any]:
    """The same, which a model must have.

    Raises:
        InputError: if there is none, or it names no `model_type`: the directory is not a model.
    """
    config = config_of(directory)
    if not isinstance(config.get("model_type"), str):
        raise InputError(f"{directory}: not a model: it has no config.json with a model_type")
    return config


def write_json(directory: str, name: str, content: Any) -> None:
    """Write a file of a local model directory, whose subdirectory is made if it does not exist."""
    path = os.path.join(directory, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def read_front_matter(directory: str) -> dict[str, Any]:
    """The front matter of the card of a model; `{}` if it has none.

    A card is written for people: one that is not UTF-8, or not YAML, states nothing, but stops nobody.
    """
    card = storage.join(directory, CARD)
    if not storage.is_file(card):
        return {}
    text = storage.read_bytes(card).decode(errors="replace").replace("\r\n", "\n")
    found = FRONT_MATTER.match(text)
    try:
        content = reading.parse(found[1].encode(), card) if found else None
    except InputError:
        return {}
    return content if isinstance(content, dict) else {}


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"

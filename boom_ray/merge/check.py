"""Whether M models can become one: everything that speaks against it, at once."""

import json
from dataclasses import dataclass
from typing import Any

from boom_ray import artifact, storage
from boom_ray.artifact import Record
from boom_ray.errors import BoomError
from boom_ray.merge.tensors import TensorPlace, align, read_places

SHAPE_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
SHARED_FILES = ("tokenizer.json", "1_Pooling/config.json")
LISTED = 5


@dataclass(frozen=True)
class Inputs:
    """The models of a merge, found fit for it.

    Attributes:
        models: Their URIs.
        places: Per model, where its tensors lie.
        records: Per model, its record if it has one.
        base: URI of the base model, if differences to it are merged.
        base_places: Where the base's tensors lie, under the models' names.
    """

    models: list[str]
    places: list[dict[str, TensorPlace]]
    records: list[Record | None]
    base: str | None
    base_places: dict[str, TensorPlace] | None


def check(models: list[str], base: str | None) -> Inputs:
    """Read the headers of all inputs and compare them.

    Raises:
        BoomError: listing every difference that makes a merge impossible.
    """
    problems: list[str] = []
    places: list[dict[str, TensorPlace]] = []
    for model in models:
        try:
            places.append(read_places(model))
        except BoomError as error:
            problems.append(str(error))
    records = [artifact.read_record(model) for model in models]
    for model, record in zip(models, records, strict=True):
        problems += _size_differences(model, record)
    if len(places) == len(models):
        for model, found in zip(models[1:], places[1:], strict=True):
            problems += _tensor_differences(models[0], places[0], model, found)
    for model in models[1:]:
        problems += _file_differences(models[0], model)
    base_places = _base_places(base, places, problems) if base and places else None
    if problems:
        raise BoomError.of(list(dict.fromkeys(problems)), "these models cannot be merged:")
    return Inputs(models, places, records, base, base_places)


def _size_differences(model: str, record: Record | None) -> list[str]:
    if record is None:
        return []
    present = storage.list_files(model)
    return [
        f"{storage.join(model, name)}: {present[name].size if name in present else 'no'} bytes, "
        f"recorded {entry.size}. Restore it, or publish the model again"
        for name, entry in record.files.items()
        if name not in present or present[name].size != entry.size
    ]


def _tensor_differences(
    first: str, expected: dict[str, TensorPlace], model: str, found: dict[str, TensorPlace]
) -> list[str]:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    problems = [f"{model}: {name}: missing, {first} has it" for name in missing[:LISTED]]
    problems += [f"{model}: {name}: not in {first}" for name in extra[:LISTED]]
    left_out = max(0, len(missing) - LISTED) + max(0, len(extra) - LISTED)
    problems += [f"{model}: {left_out} more tensors missing or not in {first}"] if left_out else []
    for name in sorted(expected.keys() & found.keys()):
        here, there = found[name], expected[name]
        if here.shape != there.shape:
            problems.append(f"{model}: {name}: shape {list(here.shape)}, in {first} {list(there.shape)}")
        elif here.dtype != there.dtype and not (here.is_floating and there.is_floating):
            problems.append(f"{model}: {name}: {here.dtype}, in {first} {there.dtype}")
    return problems


def _file_differences(first: str, model: str) -> list[str]:
    ours, theirs = _read_json(model, "config.json"), _read_json(first, "config.json")
    problems = [
        f"{model}: config.json: {key} is {ours.get(key)}, in {first} {theirs.get(key)}"
        for key in SHAPE_KEYS
        if ours.get(key) != theirs.get(key)
    ]
    return problems + [
        f"{model}: {name} differs from that of {first}"
        for name in SHARED_FILES
        if _read_json(model, name) != _read_json(first, name)
    ]


def _base_places(
    base: str, places: list[dict[str, TensorPlace]], problems: list[str]
) -> dict[str, TensorPlace] | None:
    try:
        aligned = align(read_places(base), places[0])
    except BoomError as error:
        problems.append(str(error))
        return None
    if aligned is None:
        problems.append(f"{base}: is no base of these models: it lacks some of their tensors")
        return None
    problems += [
        f"{base}: {name}: shape {list(place.shape)}, in the models {list(places[0][name].shape)}"
        for name, place in aligned.items()
        if place.shape != places[0][name].shape
    ]
    return aligned


def _read_json(model: str, name: str) -> Any:
    uri = storage.join(model, name)
    return json.loads(storage.read_bytes(uri)) if storage.is_file(uri) else {}

"""Whether M models can be merged: all differences that prevent it, in one message."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from boom_ray import artifacts, storage
from boom_ray.artifacts import ModelRecord
from boom_ray.artifacts.tensors import TensorPlace, read_places
from boom_ray.errors import BoomError, InputError
from boom_ray.merge.adapter import is_adapter, read_adapter
from boom_ray.merge.inputs import MergeInput
from boom_ray.model import directory, modules

SHAPE_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
SHARED_FILES = ("tokenizer.json", "1_Pooling/config.json")
HEAD = "lm_head.weight"
LISTED = 5  # missing or extra tensors that are listed for one model


@dataclass(frozen=True)
class CheckedInputs:
    """Models that can be merged; all tensors have the names that the first model gives them.

    Attributes:
        models: The M models.
        base: The model they were trained from, if there is one.
    """

    models: list[MergeInput]
    base: MergeInput | None


def check_inputs(models: list[str], base: str | None) -> CheckedInputs:
    """Read the headers of all inputs and compare them.

    Names are compared without a prefix that all tensors of a model share (`model.`), and without a head that
    is tied to the embeddings.

    Args:
        models: URIs.
        base: URI of the base model.

    Raises:
        InputError: listing every difference that prevents a merge.
    """
    problems: list[str] = []
    inputs = [found for model in models if (found := _read(model, base, problems))]
    if len(inputs) == len(models):
        for other in inputs[1:]:
            problems += _tensor_differences(inputs[0], other)
    for other in inputs[1:]:
        problems += _file_differences(inputs[0], other)
    problems += _base_differences(models, base)
    base_input = _read_base(base, inputs[0], problems) if base and inputs else None
    if problems:
        raise InputError.of(list(dict.fromkeys(problems)), "these models cannot be merged:")
    names = list(inputs[0].places)
    plain = _without_prefix(names)
    aligned = [_renamed(model, dict(zip(plain, names, strict=True))) for model in inputs]
    return CheckedInputs(aligned, base_input)


def _read(model: str, base: str | None, problems: list[str]) -> MergeInput | None:
    try:
        modules.read_modules(model)
        if is_adapter(model):
            return _without_tied_head(read_adapter(model, base))
        record = artifacts.find(model, ModelRecord)
        problems += _size_differences(model, record)
        return _without_tied_head(MergeInput(model, read_places(model), model, record))
    except BoomError as error:
        problems.append(str(error))
        return None


def _without_tied_head(model: MergeInput) -> MergeInput:
    """Drop a head that is tied to the embeddings: the merged model stores it once, as the embeddings."""
    tied = _read_json(model.directory, "config.json").get("tie_word_embeddings")
    if not tied or HEAD not in model.places or len(model.places) == 1:
        return model
    return replace(model, places={name: place for name, place in model.places.items() if name != HEAD})


def _without_prefix(names: Iterable[str]) -> list[str]:
    """Names without the components that all of them start with."""
    split = [name.split(".") for name in names]
    shared = 0
    while (
        len(split) > 1
        and all(len(parts) > shared + 1 for parts in split)
        and (len({parts[shared] for parts in split}) == 1)
    ):
        shared += 1
    return [".".join(parts[shared:]) for parts in split]


def _plain_places(model: MergeInput) -> dict[str, TensorPlace]:
    return dict(zip(_without_prefix(model.places), model.places.values(), strict=True))


def _renamed(model: MergeInput, names: dict[str, str]) -> MergeInput:
    """A model with other tensor names, in the order of `names`.

    Args:
        names: New name of each tensor, by its name without prefix.
    """
    own = dict(zip(_without_prefix(model.places), model.places, strict=True))
    places = {names[plain]: model.places[name] for plain, name in own.items()}
    adapter = {names[plain]: model.adapter[name] for plain, name in own.items() if name in model.adapter}
    return replace(model, places={name: places[name] for name in names.values()}, adapter=adapter)


def _size_differences(model: str, record: ModelRecord | None) -> list[str]:
    if record is None:
        return []
    present = storage.list_files(model)
    return [
        f"{storage.join(model, name)}: {present[name].size if name in present else 'no'} bytes, "
        f"recorded {entry.size}. Restore it, or publish the model again"
        for name, entry in record.files.items()
        if name not in present or present[name].size != entry.size
    ]


def _tensor_differences(first: MergeInput, other: MergeInput) -> list[str]:
    expected, found, model = _plain_places(first), _plain_places(other), other.uri
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    problems = [f"{model}: {name}: missing, {first.uri} has it" for name in missing[:LISTED]]
    problems += [f"{model}: {name}: not in {first.uri}" for name in extra[:LISTED]]
    left_out = max(0, len(missing) - LISTED) + max(0, len(extra) - LISTED)
    problems += [f"{model}: {left_out} more tensors missing or not in {first.uri}"] if left_out else []
    for name in sorted(expected.keys() & found.keys()):
        own, reference = found[name], expected[name]
        if own.shape != reference.shape:
            problems.append(
                f"{model}: {name}: shape {list(own.shape)}, in {first.uri} {list(reference.shape)}"
            )
        elif own.dtype != reference.dtype and not (own.is_floating and reference.is_floating):
            problems.append(f"{model}: {name}: {own.dtype}, in {first.uri} {reference.dtype}")
    return problems


def _file_differences(first: MergeInput, other: MergeInput) -> list[str]:
    own, reference = (_read_json(model.directory, "config.json") for model in (other, first))
    problems = [
        f"{other.uri}: config.json: {key} is {own.get(key)}, in {first.uri} {reference.get(key)}"
        for key in SHAPE_KEYS
        if own.get(key) != reference.get(key)
    ]
    return problems + [
        f"{other.uri}: {name} differs from that of {first.uri}"
        for name in SHARED_FILES
        if not _same_json(other.directory, first.directory, name)
    ]


def _base_differences(models: list[str], base: str | None) -> list[str]:
    """Records name the base model that a model was trained from; all must name the same one."""
    named = {
        model: parent
        for model in models
        if (record := artifacts.find(model, ModelRecord))
        for parent in record.parents
        if parent.version == "base"
    }
    if not named:
        return []
    origin, expected = next(iter(named.items()))
    digest = directory.identify(base).digest if base else expected.digest
    return [
        f"{model}: was trained from {parent.name} (digest {parent.digest[:8]}), but the base model of "
        f"{'this merge' if base else origin} is {base or expected.name} (digest {digest[:8]})"
        for model, parent in named.items()
        if parent.digest != digest
    ]


def _read_base(base: str, first: MergeInput, problems: list[str]) -> MergeInput | None:
    try:
        found = read_places(base)
    except BoomError as error:
        problems.append(str(error))
        return None
    names = dict(zip(_without_prefix(first.places), first.places, strict=True))
    aligned = _align(found, list(names))
    if aligned is None:
        problems.append(f"{base}: is not the base model of these models: it lacks some of their tensors")
        return None
    places = {name: aligned[plain] for plain, name in names.items()}
    problems += [
        f"{base}: {name}: shape {list(place.shape)}, in the models {list(first.places[name].shape)}"
        for name, place in places.items()
        if place.shape != first.places[name].shape
    ]
    return MergeInput(base, places, base, artifacts.find(base, ModelRecord))


def _align(found: dict[str, TensorPlace], names: list[str]) -> dict[str, TensorPlace] | None:
    """Tensors by name; a checkpoint may prefix all of them (`model.`, `bert.`), and have more tensors."""
    wanted = sorted(names)
    prefixes = {name[: -len(wanted[0])] for name in found if name.endswith(wanted[0])}
    for prefix in sorted(prefixes, key=lambda prefix: (len(prefix), prefix)):
        if all(prefix + name in found for name in wanted):
            return {name: found[prefix + name] for name in names}
    return None


def _same_json(one: str, other: str, name: str) -> bool:
    uris = [storage.join(directory, name) for directory in (one, other)]
    if all(storage.is_file(uri) for uri in uris) and storage.read_bytes(uris[0]) == storage.read_bytes(
        uris[1]
    ):
        return True
    return bool(_read_json(one, name) == _read_json(other, name))


def _read_json(model: str, name: str) -> Any:
    uri = storage.join(model, name)
    try:
        return json.loads(storage.read_bytes(uri)) if storage.is_file(uri) else {}
    except ValueError as error:
        raise InputError(f"{uri}: not valid JSON: {error}") from error

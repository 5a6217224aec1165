"""Whether M models can become one: everything that speaks against it, at once."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from boom_ray import artifacts, storage
from boom_ray.artifacts import ModelRecord
from boom_ray.artifacts.tensors import TensorPlace, read_places
from boom_ray.errors import BoomError
from boom_ray.merge.adapter import is_adapter, read_adapter
from boom_ray.merge.source import Source
from boom_ray.model import directory

SHAPE_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
SHARED_FILES = ("tokenizer.json", "1_Pooling/config.json")
HEAD = "lm_head.weight"
LISTED = 5


@dataclass(frozen=True)
class Inputs:
    """The models of a merge, found fit for it; their tensors go by the names of the first.

    Attributes:
        sources: The models.
        base: The model they were trained from, if differences to it are merged.
    """

    sources: list[Source]
    base: Source | None


def check(models: list[str], base: str | None) -> Inputs:
    """Read the headers of all inputs and compare them.

    Names are compared without a prefix that all tensors of a model share (`model.`), and without a head that
    is tied to the embeddings.

    Raises:
        BoomError: listing every difference that makes a merge impossible.
    """
    problems: list[str] = []
    sources = [source for model in models if (source := _read(model, base, problems))]
    if len(sources) == len(models):
        for source in sources[1:]:
            problems += _tensor_differences(sources[0], source)
    for source in sources[1:]:
        problems += _file_differences(sources[0], source)
    problems += _base_differences(models, base)
    based = _read_base(base, sources[0], problems) if base and sources else None
    if problems:
        raise BoomError.of(list(dict.fromkeys(problems)), "these models cannot be merged:")
    names = list(sources[0].places)
    plain = _without_prefix(names)
    aligned = [_renamed(source, dict(zip(plain, names, strict=True))) for source in sources]
    return Inputs(aligned, based)


def _read(model: str, base: str | None, problems: list[str]) -> Source | None:
    try:
        directory.check_modules(model, _read_json(model, "modules.json") or [])
        if is_adapter(model):
            return _without_tied_head(read_adapter(model, base))
        record = artifacts.find(model, ModelRecord)
        problems += _size_differences(model, record)
        return _without_tied_head(Source(model, read_places(model), model, record))
    except BoomError as error:
        problems.append(str(error))
        return None


def _without_tied_head(source: Source) -> Source:
    """A head tied to the embeddings is stored once: as the embeddings."""
    tied = _read_json(source.directory, "config.json").get("tie_word_embeddings")
    if not tied or HEAD not in source.places or len(source.places) == 1:
        return source
    return replace(source, places={name: place for name, place in source.places.items() if name != HEAD})


def _without_prefix(names: Iterable[str]) -> list[str]:
    """Names without the components that all of them begin with."""
    split = [name.split(".") for name in names]
    shared = 0
    while (
        len(split) > 1
        and all(len(parts) > shared + 1 for parts in split)
        and (len({parts[shared] for parts in split}) == 1)
    ):
        shared += 1
    return [".".join(parts[shared:]) for parts in split]


def _plain_places(source: Source) -> dict[str, TensorPlace]:
    return dict(zip(_without_prefix(source.places), source.places.values(), strict=True))


def _renamed(source: Source, names: dict[str, str]) -> Source:
    """The same model under other names, given by its names without prefix."""
    own = dict(zip(_without_prefix(source.places), source.places, strict=True))
    places = {names[plain]: source.places[name] for plain, name in own.items()}
    adapter = {names[plain]: source.adapter[name] for plain, name in own.items() if name in source.adapter}
    return replace(source, places={name: places[name] for name in names.values()}, adapter=adapter)


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


def _tensor_differences(first: Source, source: Source) -> list[str]:
    expected, found, model = _plain_places(first), _plain_places(source), source.uri
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    problems = [f"{model}: {name}: missing, {first.uri} has it" for name in missing[:LISTED]]
    problems += [f"{model}: {name}: not in {first.uri}" for name in extra[:LISTED]]
    left_out = max(0, len(missing) - LISTED) + max(0, len(extra) - LISTED)
    problems += [f"{model}: {left_out} more tensors missing or not in {first.uri}"] if left_out else []
    for name in sorted(expected.keys() & found.keys()):
        here, there = found[name], expected[name]
        if here.shape != there.shape:
            problems.append(f"{model}: {name}: shape {list(here.shape)}, in {first.uri} {list(there.shape)}")
        elif here.dtype != there.dtype and not (here.is_floating and there.is_floating):
            problems.append(f"{model}: {name}: {here.dtype}, in {first.uri} {there.dtype}")
    return problems


def _file_differences(first: Source, source: Source) -> list[str]:
    ours, theirs = _read_json(source.directory, "config.json"), _read_json(first.directory, "config.json")
    problems = [
        f"{source.uri}: config.json: {key} is {ours.get(key)}, in {first.uri} {theirs.get(key)}"
        for key in SHAPE_KEYS
        if ours.get(key) != theirs.get(key)
    ]
    return problems + [
        f"{source.uri}: {name} differs from that of {first.uri}"
        for name in SHARED_FILES
        if not _same_json(source.directory, first.directory, name)
    ]


def _base_differences(models: list[str], base: str | None) -> list[str]:
    """Records name the base model of what was trained from one; all must name the same."""
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
    where = base or origin
    return [
        f"{model}: was trained from {parent.name} (digest {parent.digest[:8]}), and not from that of {where} "
        f"(digest {digest[:8]})"
        for model, parent in named.items()
        if parent.digest != digest
    ]


def _read_base(base: str, first: Source, problems: list[str]) -> Source | None:
    try:
        found = read_places(base)
    except BoomError as error:
        problems.append(str(error))
        return None
    names = dict(zip(_without_prefix(first.places), first.places, strict=True))
    aligned = _align(found, list(names))
    if aligned is None:
        problems.append(f"{base}: is no base of these models: it lacks some of their tensors")
        return None
    places = {name: aligned[plain] for plain, name in names.items()}
    problems += [
        f"{base}: {name}: shape {list(place.shape)}, in the models {list(first.places[name].shape)}"
        for name, place in places.items()
        if place.shape != first.places[name].shape
    ]
    return Source(base, places, base, artifacts.find(base, ModelRecord))


def _align(found: dict[str, TensorPlace], names: list[str]) -> dict[str, TensorPlace] | None:
    """Tensors by name; a checkpoint may have a prefix before all (`model.`, `bert.`), and more tensors."""
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
        raise BoomError(f"{uri}: not valid JSON: {error}") from error

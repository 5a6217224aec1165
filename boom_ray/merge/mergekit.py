"""mergekit's YAML as merge settings: the methods we have, and a list of everything we do not support."""

import os
from typing import Annotated, Any, Generic, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from boom_ray import storage
from boom_ray.artifacts.tensors import NAMES, read_places
from boom_ray.errors import InputError, NotFoundError
from boom_ray.merge.compare_tokenizers import tokenizer_differences
from boom_ray.merge.mergekit_parameters import (
    PARAMETERS,
    NuSlerpParameters,
    SlerpParameters,
    Strict,
)
from boom_ray.merge.methods import METHODS
from boom_ray.merge.settings import merge_settings
from boom_ray.recipe import Merge, MergeMethod, SaveDtype, reading


class _AnyParameters(BaseModel):
    """Parameters of a method that is not supported."""


BASE_IS_AN_INPUT = ("linear", "karcher", "slerp")  # where the base model is merged like the others
P = TypeVar("P", bound=BaseModel)


def _or_empty(value: Any) -> Any:
    return {} if value is None else value


def _as_entry(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


def _without_torch(value: Any) -> Any:
    return value.removeprefix("torch.") if isinstance(value, str) else value


Dtype = Annotated[SaveDtype, BeforeValidator(_without_torch)]


class MergekitModel(Strict, Generic[P]):
    """One entry of `models`."""

    model: str
    parameters: Annotated[P, BeforeValidator(_or_empty)] = Field(default_factory=dict, validate_default=True)


class MergekitTokenizer(Strict):
    """The section `tokenizer`: another form of `tokenizer_source`."""

    source: str = "union"
    tokens: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    pad_to_multiple_of: None = None


class MergekitFile(Strict, Generic[P]):
    """A configuration file of mergekit with the parameters of its method."""

    merge_method: MergeMethod
    models: list[Annotated[MergekitModel[P], BeforeValidator(_as_entry)]] = Field(min_length=1)
    parameters: Annotated[P, BeforeValidator(_or_empty)] = Field(default_factory=dict, validate_default=True)
    base_model: str | None = None
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: str | None = None
    tokenizer: MergekitTokenizer | None = None


def read(path: str) -> tuple[list[str], str | None, Merge]:
    """Read a configuration file of mergekit.

    Args:
        path: Path of the YAML file. Its models are local paths, relative to the working directory as in
            mergekit, or names on the hub.

    Returns:
        URIs of the models, URI of the base model, and the merge settings.

    Raises:
        NotFoundError: if there is no such file.
        InputError: listing everything in the file that is not supported.
    """
    content = _parsed(path)
    method = content.merge_method
    models = _merged_models(path, content)
    base = _uri(path, content.base_model) if content.base_model else None
    of_section = content.tokenizer.source if content.tokenizer else None
    for source in (content.tokenizer_source, of_section):
        if source is not None:
            _check_tokenizer(path, source, [uri for uri, _ in models], base)
    if method == "slerp":
        models.sort(key=lambda model: model[0] != base)  # t counts from the base model
    parameters = [own for _, own in models]
    weights = _weights(path, method, content.parameters, parameters)
    dtype = content.out_dtype or content.dtype or _dtype_of(path, models, base)
    if method in BASE_IS_AN_INPUT:
        base = None
    settings = merge_settings(
        method=method,
        space="deltas" if base else "weights",
        weights=weights,
        dtype=dtype,
        scale=getattr(content.parameters, "scale", 1.0),
        iterations=getattr(content.parameters, "max_iter", 10),
        density=[own.density if METHODS[method].by_element else 1.0 for own in parameters],
        normalize=_normalize(content.parameters),
    )
    return [uri for uri, _ in models], base, settings


def _parsed(path: str) -> MergekitFile[Any]:
    content = _content(path)
    if not isinstance(content, dict) or "merge_method" not in content:
        raise InputError(f"{path}: not a configuration of mergekit: it has no merge_method")
    method = str(content["merge_method"])
    kind: type[BaseModel] = PARAMETERS.get(method, _AnyParameters)
    try:
        return cast(MergekitFile[Any], MergekitFile[kind].model_validate(content))  # type: ignore[valid-type]
    except ValidationError as error:
        problems = [_problem(entry, method) for entry in error.errors(include_url=False)]
        raise InputError.of(problems, f"{path}: cannot be merged:") from None


def _content(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            return reading.parse(file.read(), path)
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _problem(entry: Any, method: str) -> str:
    """One validation error in terms of the file; models are counted from 1."""
    place = ": ".join(str(part + 1 if isinstance(part, int) else part) for part in entry["loc"])
    value, kind = entry["input"], entry["type"]
    if kind == "extra_forbidden":
        return f"{place}: not supported" + (f" by {method} here" if "parameters" in entry["loc"] else "")
    if kind == "literal_error":
        return f"{place} {value!r}: not supported; allowed: {entry['ctx']['expected'].replace(chr(39), '')}"
    if kind in ("float_type", "float_parsing", "int_type", "int_parsing", "bool_type"):
        return f"{place}: {value!r}: only one number; gradients and filters are not supported"
    return f"{place}: {entry['msg']}" + ("" if kind == "missing" else f", got {value!r}")


def _merged_models(path: str, content: MergekitFile[Any]) -> list[tuple[str, Any]]:
    """URI of each model that is merged, and its parameters: its own, else those of the file."""
    base = _uri(path, content.base_model) if content.base_model else None
    models = [
        (
            _uri(path, entry.model),
            content.parameters.model_copy(update=entry.parameters.model_dump(exclude_unset=True)),
        )
        for entry in content.models
    ]
    uris = [uri for uri, _ in models]
    if repeated := sorted({uri for uri in uris if uris.count(uri) > 1}):
        raise InputError(f"{path}: models: {', '.join(repeated)}: listed twice; give each model once")
    if content.merge_method == "slerp" and base is None:
        raise InputError(f"{path}: slerp needs base_model: the model that t = 0 stands for")
    if content.merge_method not in BASE_IS_AN_INPUT:
        models = [(uri, own) for uri, own in models if uri != base]
    elif base and base not in uris:
        models.append((base, content.parameters))  # as mergekit adds it
    if not models:
        raise InputError(f"{path}: models: names only the base model; give a model to merge with it")
    return models


def _uri(path: str, name: str) -> str:
    """A path that exists, or a name on the hub."""
    if os.path.exists(name) or not storage.is_local(name):
        return storage.absolute(name)
    if "+" in name:
        raise InputError(f"{path}: {name}: a model plus an adapter is not supported. Give the adapter alone")
    return storage.hub_uri(name)


def _check_tokenizer(path: str, source: str, models: list[str], base: str | None) -> None:
    """Accept a tokenizer source that means the tokenizer of the models, which must all have the same.

    Raises:
        InputError: if it names another model, or a base model with another tokenizer.
    """
    if source not in ("base", "union") and _uri(path, source) not in [*models, base]:
        raise InputError(f"{path}: tokenizer_source {source!r}: not supported; allowed: base, union, a model")
    if base is not None and base not in models and source in ("base", "union", base):
        differences = tokenizer_differences(*map(storage.local_directory, (models[0], base)))
        if differences:
            heading = f"{path}: tokenizer_source {source!r}: not supported if the base has another tokenizer:"
            raise InputError.of(differences, heading)


def _weights(path: str, method: str, shared: Any, parameters: list[Any]) -> str | list[float]:
    if isinstance(shared, SlerpParameters):
        if shared.t is None:
            raise InputError(f"{path}: slerp needs parameters: t, from 0 (the base model) to 1")
        return [1 - shared.t, shared.t]
    if "weight" not in type(shared).model_fields:
        return "equal"
    weights = [own.weight for own in parameters]
    if None in weights:
        number = weights.index(None) + 1
        raise InputError(f"{path}: {method} needs a weight for every model; model {number} has none")
    return weights


def _normalize(shared: Any) -> bool | None:
    """Whether weights are normalized; None for methods without weights."""
    return True if isinstance(shared, NuSlerpParameters) else getattr(shared, "normalize", None)


def _dtype_of(path: str, models: list[tuple[str, Any]], base: str | None) -> str:
    """The dtype that no tensor of the models loses digits in: theirs, or float32 for several."""
    uris = dict.fromkeys([*(uri for uri, _ in models), *([base] if base else [])])
    places = [place for uri in uris for place in read_places(_readable(uri)).values()]
    found = {place.dtype for place in places if place.is_floating}
    names = {name for name, dtype in NAMES.items() if dtype in found}
    if len(names) == len(found) == 1:
        return names.pop()
    if "F64" in found:
        raise InputError(f"{path}: the models are float64; give a dtype: {', '.join(NAMES)}")
    return "float32"


def _readable(uri: str) -> str:
    return storage.local_directory(uri) if storage.is_hub(uri) else uri

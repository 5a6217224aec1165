"""mergekit's YAML as merge settings: the methods we have, and a list of everything we do not support."""

import os
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from boom_ray import storage
from boom_ray.artifacts.tensors import NAMES
from boom_ray.errors import InputError, NotFoundError
from boom_ray.merge.settings import merge_settings
from boom_ray.recipe import Merge, MergeMethod, SaveDtype


def _flag(value: Any) -> Any:
    """mergekit's files often have 1.0 or 0.0 for true or false."""
    return bool(value) if value in (0, 1) else value


Flag = Annotated[bool, BeforeValidator(_flag)]
Yes = Annotated[Literal[True], BeforeValidator(_flag)]
No = Annotated[Literal[False], BeforeValidator(_flag)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Parameters(_Strict):
    """Parameters of any method, which must have these values to mean what we compute."""

    nuslerp_flatten: Yes = True
    nuslerp_row_wise: No = False
    filter_wise: No = False
    int8_mask: No = False


class WeightedParameters(Parameters):
    """Parameters of a method with weights.

    Attributes:
        normalize: Whether to divide by the sum of the weights; the default is that of mergekit's method.
    """

    weight: float | None = None
    normalize: Flag = False


class LinearParameters(WeightedParameters):
    """Parameters of `linear`."""

    normalize: Flag = True


class MultiSlerpParameters(Parameters):
    """Parameters of `multislerp`."""

    weight: float | None = None
    normalize: Flag = Field(True, alias="normalize_weights")


class NuSlerpParameters(Parameters):
    """Parameters of `nuslerp`, which always normalizes."""

    weight: float | None = None


class KarcherParameters(Parameters):
    """Parameters of `karcher`; `tol` is accepted, but we always make `max_iter` steps."""

    max_iter: int = Field(10, ge=1)
    tol: float | None = None


class SlerpParameters(Parameters):
    """Parameters of `slerp`: 0 is the base model, 1 the other one."""

    t: float | None = None


class TaskArithmeticParameters(WeightedParameters):
    """Parameters of `task_arithmetic`."""

    scale: float = Field(1.0, alias="lambda")


class SparseParameters(TaskArithmeticParameters):
    """Parameters of `dare_linear`."""

    density: float = Field(1.0, gt=0, le=1)


class SparseConsensusParameters(SparseParameters):
    """Parameters of `ties`."""

    normalize: Flag = True


class _AnyParameters(BaseModel):
    """Parameters of a method that is not supported."""


PARAMETERS: dict[str, type[Parameters]] = {
    "linear": LinearParameters,
    "multislerp": MultiSlerpParameters,
    "karcher": KarcherParameters,
    "slerp": SlerpParameters,
    "nuslerp": NuSlerpParameters,
    "task_arithmetic": TaskArithmeticParameters,
    "model_stock": Parameters,
    "ties": SparseConsensusParameters,
    "dare_linear": SparseParameters,
}
BASE_IS_AN_INPUT = ("linear", "karcher", "slerp")  # where the base model is merged like the others
P = TypeVar("P", bound=BaseModel)


def _or_empty(value: Any) -> Any:
    return {} if value is None else value


def _as_entry(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


class MergekitModel(_Strict, Generic[P]):
    """One entry of `models`."""

    model: str
    parameters: Annotated[P, BeforeValidator(_or_empty)] = Field(default_factory=dict, validate_default=True)


class MergekitFile(_Strict, Generic[P]):
    """A configuration file of mergekit with the parameters of its method."""

    merge_method: MergeMethod
    models: list[Annotated[MergekitModel[P], BeforeValidator(_as_entry)]] = Field(min_length=1)
    parameters: Annotated[P, BeforeValidator(_or_empty)] = Field(default_factory=dict, validate_default=True)
    base_model: str | None = None
    dtype: SaveDtype | None = None
    out_dtype: SaveDtype | None = None


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
    models = _merged_models(path, content)
    base = _uri(content.base_model) if content.base_model else None
    if content.merge_method == "slerp":
        models.sort(key=lambda model: model[0] != base)  # t counts from the base model
    if content.merge_method in BASE_IS_AN_INPUT:
        base = None
    parameters = [own for _, own in models]
    settings = merge_settings(
        method=content.merge_method,
        space="deltas" if base else "weights",
        weights=_weights(path, content.merge_method, content.parameters, parameters),
        dtype=_dtype(path, content, models[0][0]),
        scale=getattr(content.parameters, "scale", 1.0),
        iterations=getattr(content.parameters, "max_iter", 10),
        density=[getattr(own, "density", 1.0) for own in parameters],
        normalize=_normalize(content.parameters),
    )
    return [uri for uri, _ in models], base, settings


def _parsed(path: str) -> MergekitFile[Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a configuration of mergekit: it has no merge_method")
    method = str(content.get("merge_method"))
    kind: type[BaseModel] = PARAMETERS.get(method, _AnyParameters)
    try:
        return cast(MergekitFile[Any], MergekitFile[kind].model_validate(content))  # type: ignore[valid-type]
    except ValidationError as error:
        problems = [_problem(entry, method) for entry in error.errors(include_url=False)]
        raise InputError.of(problems, f"{path}: cannot be merged:") from None


def _problem(entry: Any, method: str) -> str:
    """One validation error in terms of the file; models are counted from 1."""
    place = ": ".join(str(part + 1 if isinstance(part, int) else part) for part in entry["loc"])
    value, kind = entry["input"], entry["type"]
    if kind == "extra_forbidden":
        return f"{place}: not supported" + (f" by {method} here" if "parameters" in entry["loc"] else "")
    if kind == "literal_error":
        return f"{place} {value!r}: not supported; allowed: {entry['ctx']['expected'].replace(chr(39), '')}"
    if kind in ("float_type", "int_type", "bool_type"):
        return f"{place}: {value!r}: only one number; gradients and filters are not supported"
    return f"{place}: {entry['msg']}" + ("" if kind == "missing" else f", got {value!r}")


def _merged_models(path: str, content: MergekitFile[Any]) -> list[tuple[str, Any]]:
    """URI of each model that is merged, and its parameters: its own, else those of the file."""
    base = _uri(content.base_model) if content.base_model else None
    models = [
        (
            _uri(entry.model),
            content.parameters.model_copy(update=entry.parameters.model_dump(exclude_unset=True)),
        )
        for entry in content.models
    ]
    if content.merge_method not in BASE_IS_AN_INPUT:
        models = [(uri, own) for uri, own in models if uri != base]
    elif base and base not in [uri for uri, _ in models]:
        models.append((base, content.parameters))  # as mergekit adds it
    if not models:
        raise InputError(f"{path}: models: names only the base model; give two models or more")
    return models


def _uri(name: str) -> str:
    """A path that exists, or a name on the hub."""
    is_path = os.path.exists(name) or not storage.is_local(name)
    return storage.absolute(name) if is_path else storage.hub_uri(name)


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


def _dtype(path: str, content: MergekitFile[Any], first: str) -> SaveDtype:
    """The dtype that is written: as the file states, else that of the first model."""
    name = content.out_dtype or content.dtype
    if name is None:
        config = yaml.safe_load(
            storage.read_bytes(storage.join(storage.local_directory(first), "config.json"))
        )
        name = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if name not in NAMES:
        raise InputError(f"{path}: dtype {name!r}: not supported; allowed: {', '.join(NAMES)}")
    return name

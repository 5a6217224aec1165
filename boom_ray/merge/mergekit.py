"""mergekit's YAML, read as a merge of ours: the methods we have, and a list of everything we do not."""

import os
from typing import Any, cast

import yaml

from boom_ray import storage
from boom_ray.artifacts.tensors import NAMES
from boom_ray.errors import BoomError
from boom_ray.merge.actors import MergeSpec
from boom_ray.merge.methods import METHODS, Options
from boom_ray.recipe import SaveDtype

SECTIONS = {"merge_method", "models", "base_model", "parameters", "dtype", "out_dtype"}
#: Parameters of a method that we read, and those that must have the value given to mean what we do.
COMMON: dict[str, set[str]] = {
    "linear": {"weight", "normalize"},
    "multislerp": {"weight", "normalize_weights"},
    "karcher": {"max_iter", "tol"},
    "slerp": {"t"},
    "nuslerp": {"weight"},
    "task_arithmetic": {"weight", "normalize", "lambda"},
    "model_stock": set(),
    "ties": {"weight", "density", "normalize", "lambda"},
    "dare_linear": {"weight", "density", "normalize", "lambda"},
}
FIXED = {"nuslerp_flatten": True, "nuslerp_row_wise": False, "filter_wise": False, "int8_mask": False}
NORMALIZED = {"linear", "multislerp", "nuslerp", "ties"}  # by default, in mergekit


def read(path: str) -> tuple[list[str], str | None, MergeSpec]:
    """A configuration file of mergekit.

    Args:
        path: Of the YAML file. Models are local paths, relative to the working directory as mergekit has
            it, or names on the hub.

    Returns:
        URIs of the models, of the base, and how they are merged.

    Raises:
        BoomError: listing everything in the file that is not supported.
    """
    config = _load(path)
    method = config.get("merge_method")
    problems = [f"{key}: not supported" for key in sorted(config.keys() - SECTIONS)]
    if method not in METHODS:
        problems.append(f"merge_method {method!r}: not supported; allowed: {', '.join(METHODS)}")
        raise BoomError.of(problems, f"{path}: cannot be merged as it stands:")
    entries = [_entry(entry, problems) for entry in config.get("models") or []]
    shared = config.get("parameters") or {}
    for where, parameters in [("parameters", shared), *entries]:
        problems += _unsupported(method, where, parameters)
    if problems:
        raise BoomError.of(problems, f"{path}: cannot be merged as it stands:")
    base = _uri(config["base_model"]) if config.get("base_model") else None
    merged = [
        (uri, {**shared, **own}) for name, own in entries if (uri := _uri(name)) != base or method == "slerp"
    ]
    if method == "slerp":
        merged.sort(key=lambda item: item[0] != base)  # t counts from the base
        base = None
    spec = MergeSpec(
        method=method,
        space="deltas" if base and method != "linear" else "weights",
        weights=_weights(path, method, [parameters for _, parameters in merged], shared),
        dtype=_dtype(path, config, merged[0][0]),
        options=_options(method, [parameters for _, parameters in merged], shared),
    )
    return [uri for uri, _ in merged], base, spec


def _load(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.safe_load(file)
    except FileNotFoundError:
        raise BoomError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise BoomError(f"{path}: not YAML: {error}") from error
    if not isinstance(config, dict):
        raise BoomError(f"{path}: not a configuration of mergekit: it has no merge_method")
    return config


def _entry(entry: Any, problems: list[str]) -> tuple[str, dict[str, Any]]:
    model = entry.get("model") if isinstance(entry, dict) else entry
    if not isinstance(model, str):
        problems.append(f"models: {entry!r}: not supported; give a path or a name")
        return str(model), {}
    extra = sorted(entry.keys() - {"model", "parameters"}) if isinstance(entry, dict) else []
    problems += [f"models: {model}: {key}: not supported" for key in extra]
    return model, (entry.get("parameters") or {}) if isinstance(entry, dict) else {}


def _unsupported(method: str, where: str, parameters: dict[str, Any]) -> list[str]:
    problems = []
    for key, value in parameters.items():
        if key in FIXED:
            problems += [f"{where}: {key}: {value}: only {FIXED[key]}"] if value != FIXED[key] else []
        elif key not in COMMON[method]:
            problems.append(f"{where}: {key}: not supported by {method} here")
        elif not isinstance(value, int | float):
            problems.append(
                f"{where}: {key}: {value!r}: only one number; gradients and filters are not supported"
            )
    return problems


def _uri(name: str) -> str:
    """A path that exists, or a name on the hub."""
    is_path = os.path.exists(name) or not storage.is_local(name)
    return storage.absolute(name) if is_path else storage.hub_uri(name)


def _weights(path: str, method: str, parameters: list[dict[str, Any]], shared: dict[str, Any]) -> Any:
    if method == "slerp":
        if "t" not in shared:
            raise BoomError(f"{path}: slerp needs parameters: t, from 0 (the base) to 1")
        return [1 - shared["t"], shared["t"]]
    if "weight" not in COMMON[method]:
        return "equal"
    missing = [number for number, own in enumerate(parameters, 1) if "weight" not in own]
    if missing:
        raise BoomError(f"{path}: {method} needs a weight for every model; model {missing[0]} has none")
    return [float(own["weight"]) for own in parameters]


def _options(method: str, parameters: list[dict[str, Any]], shared: dict[str, Any]) -> Options:
    normalize = shared.get("normalize", shared.get("normalize_weights", method in NORMALIZED))
    return Options(
        scale=float(shared.get("lambda", 1.0)),
        iterations=int(shared.get("max_iter", 10)),
        density=[float(own.get("density", 1.0)) for own in parameters],
        normalize=bool(normalize) if "weight" in COMMON[method] else None,
    )


def _dtype(path: str, config: dict[str, Any], first: str) -> SaveDtype:
    """What is written: as the file says, else as the first model is."""
    name = config.get("out_dtype") or config.get("dtype")
    if name is None:
        model = yaml.safe_load(
            storage.read_bytes(storage.join(storage.local_directory(first), "config.json"))
        )
        name = model.get("dtype") or model.get("torch_dtype") or "bfloat16"
    if name not in NAMES:
        raise BoomError(f"{path}: dtype {name!r}: not supported; allowed: {', '.join(NAMES)}")
    return cast(SaveDtype, name)

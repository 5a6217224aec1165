"""The same configuration files, read by mergekit and by us, give the same merges of the same models."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from boom_ray.errors import InputError, NotFoundError
from boom_ray.merge import mergekit
from boom_ray.recipe import Merge
from tests.merge.oracle import streamed
from tests.merge.test_actors import tensors_of, variant

MERGEKIT = os.environ.get("BOOM_RAY_MERGEKIT_PYTHON")
THEIRS = """
import json, sys
from mergekit.scripts.merge_raw_pytorch import main
for config, out in json.loads(sys.argv[1]):
    main.main([config, out], standalone_mode=False)
"""
WEIGHTS = [{"weight": 0.2}, {"weight": 0.3}, {"weight": 0.9}]
DENSITIES = [
    {"weight": 0.2, "density": 0.5},
    {"weight": 0.3, "density": 0.3},
    {"weight": 0.9, "density": 1.0},
]
NOTHING: list[dict[str, float]] = [{}, {}, {}]
#: method, parameters of each model, shared parameters, whether it has a base, dtype
CASES: dict[str, tuple[str, list[dict[str, float]], dict[str, Any], bool, str]] = {
    "linear": ("linear", WEIGHTS, {}, False, "float32"),
    "linear-sum": ("linear", WEIGHTS, {"normalize": False}, False, "float32"),
    "linear-base": ("linear", WEIGHTS, {"weight": 0.4}, True, "float32"),
    "linear-listed": ("linear", WEIGHTS[:2], {}, True, "float32"),
    "linear-base-sum": ("linear", WEIGHTS, {"weight": 0.4, "normalize": False}, True, "float32"),
    "multislerp": ("multislerp", WEIGHTS, {}, False, "float32"),
    "multislerp-base": ("multislerp", WEIGHTS, {}, True, "float32"),
    "multislerp-bfloat16": ("multislerp", WEIGHTS, {}, True, "bfloat16"),
    "karcher": ("karcher", NOTHING, {}, False, "float32"),
    "karcher-one": ("karcher", NOTHING, {"max_iter": 1}, False, "float32"),
    "karcher-base": ("karcher", NOTHING, {}, True, "float32"),
    "slerp": ("slerp", NOTHING[:2], {"t": 0.3}, True, "float32"),
    "nuslerp": ("nuslerp", WEIGHTS[:2], {}, False, "float32"),
    "nuslerp-base": ("nuslerp", WEIGHTS[:2], {"nuslerp_flatten": True}, True, "float32"),
    "task_arithmetic": ("task_arithmetic", WEIGHTS, {"lambda": 0.7}, True, "float32"),
    "model_stock": ("model_stock", NOTHING, {}, True, "float32"),
    "ties": ("ties", DENSITIES, {"lambda": 1.3, "int8_mask": True}, True, "float32"),
    "ties-one": ("ties", DENSITIES[:1], {}, True, "float32"),
    "task_arithmetic-one": ("task_arithmetic", WEIGHTS[:1], {}, True, "float32"),
    "task_arithmetic-mean": ("task_arithmetic", DENSITIES, {"normalize": True}, True, "float32"),
    "multislerp-one": ("multislerp", WEIGHTS[:1], {}, True, "float32"),
    "multislerp-sum": ("multislerp", WEIGHTS, {"normalize_weights": False}, True, "float32"),
    "karcher-one-base": ("karcher", NOTHING[:1], {"max_iter": 1}, True, "float32"),
    "linear-text": ("linear", WEIGHTS[:2], {"weight": "5e-1"}, True, "torch.float32"),
    "equal-linear-sum": ("linear", WEIGHTS, {"normalize": False}, False, "float32"),
    "equal-task_arithmetic": ("task_arithmetic", WEIGHTS, {}, True, "float32"),
    "equal-ties": ("ties", DENSITIES, {}, True, "float32"),
    "equal-multislerp": ("multislerp", WEIGHTS, {}, False, "float32"),
    "zero-karcher": ("karcher", NOTHING, {"max_iter": 1}, False, "float32"),
    "zero-slerp": ("slerp", NOTHING[:2], {"t": 0.3}, True, "float32"),
    "zero-nuslerp": ("nuslerp", WEIGHTS[:2], {}, True, "float32"),
    "ties-sum": ("ties", DENSITIES, {"normalize": False}, True, "float32"),
}


def configuration(case: str, models: list[str], base: str, suffix: str) -> dict[str, Any]:
    method, parameters, shared, with_base, dtype = CASES[case]
    if case.startswith("equal"):  # some tensors are equal in all of them, and some equal those of the base
        models = models[3:6]
    if case.startswith("zero"):  # the first has tensors that are zero, or equal those of the base
        models = [models[6 if method == "nuslerp" else 7], *models[1:3]]
    with_base_first = method == "slerp" or case in ("linear-listed", "linear-text")
    inputs = [base, models[0]] if with_base_first else models[: len(parameters)]
    entries = [
        {"model": model + suffix, "parameters": dict(own)}
        for model, own in zip(inputs, parameters, strict=True)
    ]
    config = {"merge_method": method, "models": entries, "parameters": shared, "dtype": dtype}
    return config | ({"base_model": base + suffix} if with_base else {})


@pytest.fixture(scope="module")
def models(published_qwen3, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    made = [variant(published_qwen3, str(root / str(seed)), seed) for seed in (1, 2, 3)]
    base = tensors_of(published_qwen3)
    for number, (model, norms) in enumerate([(0, 2.0), (1, 2.0), (2, 2.0), (0, None), (0, 0.0)]):
        target = str(root / f"special{number}")
        shutil.copytree(made[model], target, ignore=shutil.ignore_patterns("artifact.json"))
        tensors = tensors_of(target)
        for name in tensors:
            if "layernorm" in name:
                tensors[name] = base[name] if norms is None else norms * torch.ones_like(tensors[name])
            elif "norm" in name and norms == 2:
                tensors[name] = base[name]
        save_file(tensors, os.path.join(target, "model.safetensors"), {"format": "pt"})
        made.append(target)
    return made


@pytest.fixture(scope="module")
def theirs(models, published_qwen3, tmp_path_factory) -> dict[str, Any]:
    """mergekit's merged tensors of every case, from one process for all."""
    if not MERGEKIT:
        pytest.skip("BOOM_RAY_MERGEKIT_PYTHON names no Python with mergekit; tests/run.sh makes one")
    root, runs = tmp_path_factory.mktemp("mergekit"), []
    for case in CASES:
        config = configuration(case, models, published_qwen3, "/model.safetensors")
        (root / f"{case}.yml").write_text(yaml.safe_dump(config))
        runs.append((str(root / f"{case}.yml"), str(root / case)))
    run = subprocess.run([MERGEKIT, "-c", THEIRS, json.dumps(runs)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return {case: tensors_of(out) for case, (_, out) in zip(CASES, runs, strict=True)}


@pytest.mark.parametrize("case", CASES)
def test_mergekit_gives_the_same(case, theirs, models, published_qwen3, tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(configuration(case, models, published_qwen3, "")))
    inputs, base, settings = mergekit.read(str(path))
    merged = streamed(inputs, base, settings, str(tmp_path))
    assert merged.keys() == theirs[case].keys()
    tolerance = (
        1e-5 if settings.dtype == "float32" else 2.0**-7
    )  # it computes in bfloat16 when it writes bfloat16
    for name, tensor in merged.items():
        other = theirs[case][name].double()
        assert (tensor.double() - other).norm() <= tolerance * other.norm(), name


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"merge_method": "della"}, ["merge_method 'della': not supported; allowed: linear"]),
        (
            {"slices": [], "tokenizer": {"tokens": {"<s>": {"source": "base"}}, "pad_to_multiple_of": 8}},
            ["slices: not supported", "tokenizer: tokens: ", "tokenizer: pad_to_multiple_of: "],
        ),
        ({"parameters": {"rescale": True}}, ["parameters: rescale: not supported by linear"]),
        ({"parameters": {"normalize": [0, 1]}}, ["normalize: [0, 1]: only one number"]),
        ({"dtype": "int8"}, ["dtype 'int8': not supported; allowed: float32"]),
        ({"tokenizer_source": "other/model"}, ["tokenizer_source 'other/model': not supported"]),
        ({"base_model": "base+adapter"}, ["base+adapter: a model plus an adapter is not supported"]),
    ],
)
def test_everything_unsupported_is_named(change, parts, models, published_qwen3, tmp_path):
    path: Path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(configuration("linear", models, published_qwen3, "") | change))
    with pytest.raises(InputError) as caught:
        mergekit.read(str(path))
    assert all(part in str(caught.value) for part in parts)


def test_a_missing_weight_is_named(models, published_qwen3, tmp_path):
    config = configuration("linear", models, published_qwen3, "")
    del config["models"][1]["parameters"]["weight"]
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match="linear needs a weight for every model; model 2 has none"):
        mergekit.read(str(tmp_path / "config.yml"))


def test_without_a_dtype_the_first_model_decides(models, published_qwen3, tmp_path):
    config = configuration("linear", models, published_qwen3, "")
    del config["dtype"]
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
    assert mergekit.read(str(tmp_path / "config.yml"))[2].dtype == "float32"


def read(path: Path, config: Any) -> tuple[list[str], str | None, Merge]:
    path.write_text(yaml.safe_dump(config))
    return mergekit.read(str(path))


def test_all_problems_are_listed_at_once_with_their_path_in_the_file(tmp_path):
    entries = ["a", {"model": "b", "x": 1, "parameters": {"weight": "heavy", "rescale": 1}}, 3]
    config = {"merge_method": "linear", "models": entries, "dtype": "int8", "slices": []}
    with pytest.raises(InputError) as caught:
        read(tmp_path / "config.yml", config)
    for part in (
        "models: 2: x: not supported",
        "models: 2: parameters: weight: 'heavy': only one number",
        "models: 2: parameters: rescale: not supported by linear",
        "models: 3: ",
        "dtype 'int8'",
        "slices: not supported",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ([], "no merge_method"),
        ({"merge_method": "linear", "models": []}, "models: "),
        ({"merge_method": "ties", "base_model": "a", "models": ["a"]}, "only the base model"),
        ({"merge_method": "ties", "models": ["a"], "parameters": {"density": 0}}, "density: .*got 0"),
        ({"merge_method": "karcher", "models": ["a"], "parameters": {"max_iter": 0}}, "max_iter: .*got 0"),
        ({"merge_method": "slerp", "base_model": "a", "models": ["a", "b"]}, "slerp needs parameters: t"),
        ({"merge_method": "slerp", "models": ["a", "b"], "parameters": {"t": 0.5}}, "slerp needs base_model"),
        ({"merge_method": "karcher", "models": ["a", "a"]}, "a: listed twice"),
        ({"merge_method": "karcher", "models": ["a"], "parameters": {"tol": 0.1}}, "tol: .*got 0.1"),
        ({"merge_method": "dare_linear", "models": ["a"], "parameters": {"rescale": False}}, "rescale False"),
        ({"merge_method": "ties", "models": ["a"], "parameters": {"rescale": 1}}, "rescale True"),
        ({"merge_method": ["linear"], "models": ["a"]}, "merge_method"),
        ({"merge_method": "linear", "models": {"model": "a"}}, "models: "),
        ({"merge_method": "linear", "models": ["a"], "parameters": ["weight"]}, "parameters: "),
        ({"merge_method": "linear", "models": [{"model": {"path": "a"}}]}, "models: 1: model: "),
        ({"models": ["a", "b"]}, "no merge_method"),
        (
            {"merge_method": "nuslerp", "models": ["a"], "parameters": {"nuslerp_row_wise": True}},
            "nuslerp_row_wise True: not supported; allowed: False",
        ),
    ],
)
def test_files_that_are_not_a_merge_are_refused(config, part, tmp_path):
    with pytest.raises(InputError, match=part):
        read(tmp_path / "config.yml", config)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"absent\.yml"):
        mergekit.read(str(tmp_path / "absent.yml"))


def test_parameters_of_a_model_override_those_of_the_file(tmp_path):
    one, other, base = (str(tmp_path / name) for name in ("one", "other", "base"))
    for path in (one, other, base):
        os.makedirs(path)
    config = {
        "merge_method": "ties",
        "base_model": base,
        "models": [base, {"model": one, "parameters": {"weight": 2, "density": 0.1}}, other],
        "parameters": {"weight": 0.5, "density": 0.3, "lambda": 2, "normalize": 0.0, "int8_mask": 0.0},
        "dtype": "float32",
    }
    assert read(tmp_path / "config.yml", config) == (
        [one, other],
        base,
        Merge(
            method="ties",
            weights=[2.0, 0.5],
            density=[0.1, 0.3],
            scale=2.0,
            normalize=False,
            dtype="float32",
        ),
    )


@pytest.mark.parametrize(
    "content",
    [
        b"merge_method: linear\nname: \xff",
        b"[unclosed",
        b"date: 2024-13-45",
        b"just text",
        b"\x00",
        b"[" * 9000,
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_a_sentence(content, tmp_path):
    (tmp_path / "config.yml").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.yml: not "):
        mergekit.read(str(tmp_path / "config.yml"))
    with pytest.raises(InputError, match="cannot be read"):
        mergekit.read(str(tmp_path))


def test_settings_that_mean_the_same_are_accepted(models, published_qwen3, tmp_path):
    config = configuration("linear", models, published_qwen3, "")
    expected = read(tmp_path / "config.yml", config)
    for change in (
        {"dtype": "torch.float32"},
        {"tokenizer_source": "base"},
        {"tokenizer_source": models[1]},
        {"tokenizer": {"source": "union"}},
        {"parameters": {"int8_mask": True, "normalize": "yes"}},
        {"parameters": {"normalize": [{"value": 1.0}]}},
    ):
        assert read(tmp_path / "config.yml", config | change) == expected


def test_the_tokenizer_of_another_base_is_refused(models, published_qwen3, qwen3, tmp_path):
    config = configuration("ties", models, qwen3, "")
    read(tmp_path / "config.yml", config)
    with pytest.raises(InputError, match=r"tokenizer_source 'base': .*\n.*special tokens"):
        read(tmp_path / "config.yml", config | {"tokenizer_source": "base"})
    same = configuration("ties", models, published_qwen3, "") | {"tokenizer_source": "base"}
    assert read(tmp_path / "config.yml", same)[1] == published_qwen3


def test_without_a_dtype_no_model_loses_digits(models, published_qwen3, tmp_path):
    half = [variant(published_qwen3, str(tmp_path / str(i)), i, torch.bfloat16) for i in range(2)]
    for inputs, dtype in ((half, "bfloat16"), ([half[0], models[0]], "float32")):
        entries = [{"model": model, "parameters": {"weight": 1}} for model in inputs]
        config = {"merge_method": "linear", "models": entries}
        assert read(tmp_path / "config.yml", config)[2].dtype == dtype

"""Merge settings: one type from the recipe to the workers, and one list of method names."""

import inspect
import subprocess
import sys
from typing import get_args

import pytest
from click.testing import CliRunner

from boom_ray import artifacts
from boom_ray.api.merging import merge as merge_models
from boom_ray.cli.merge import merge as command
from boom_ray.errors import InputError
from boom_ray.merge import elementwise
from boom_ray.merge.check_inputs import check_inputs
from boom_ray.merge.inputs import MergeInput
from boom_ray.merge.mergekit import PARAMETERS
from boom_ray.merge.methods import METHODS
from boom_ray.merge.settings import check_settings, merge_settings, resolve_weights
from boom_ray.recipe import Merge, MergeMethod, UpdateMerge, identity


def test_every_method_of_the_recipe_is_registered():
    names = set(get_args(MergeMethod))
    assert names == set(METHODS) == set(PARAMETERS)
    for name, method in METHODS.items():
        assert (method.coefficients is None) == (method.by_element is not None)
        assert method.by_element is None or hasattr(elementwise, method.by_element), name


@pytest.mark.parametrize(
    ("settings", "digest"),
    [
        (Merge(), "60d1082864490dbe79d9c5e6b47f733d"),
        (Merge(method="ties", density=0.3, weights=[1, 2, 3]), "ca8f65d0efd774adfa9f89bacaa88f7e"),
        (
            Merge(method="karcher", iterations=1, space="weights", dtype="float32"),
            "a461f0fe5b49b7948e1e454fb42f7808",
        ),
    ],
)
def test_the_identity_of_published_settings_is_stable(settings, digest):
    assert artifacts.fingerprint(identity(settings)) == digest


def test_normalize_is_part_of_the_identity_once_it_is_set():
    assert "normalize" not in identity(Merge()) and identity(Merge(normalize=False))["normalize"] is False
    assert Merge.model_validate(Merge(normalize=True, density=[0.1, 1]).model_dump()).normalize is True


def test_weights_of_zero_are_allowed_for_a_group_of_task_vectors_only(published_qwen3):
    models = check_inputs([published_qwen3, published_qwen3], published_qwen3).models
    groups = {"embeddings": [0.0, 0.0], "layers 0-1": [1.0, 1.0], "rest": [1.0, 1.0]}
    summed = {"method": "linear", "normalize": False}
    assert resolve_weights(models, Merge(weights=groups, **summed)) == groups
    for settings in (
        Merge(weights=[0.0, 0.0], **summed),
        Merge(weights=[0.0, 0.0], method="ties"),
        Merge(weights=groups, space="weights", **summed),
    ):
        with pytest.raises(InputError, match=r"sum to 0"):
            resolve_weights(models, settings)


def test_a_scale_from_the_parent_is_part_of_the_identity_and_one_of_weights_is_refused():
    assert identity(UpdateMerge()) == identity(Merge())
    assert identity(UpdateMerge(scale=0.5)) == identity(Merge(scale=0.5)) | {"scale_from": "parent"}
    with pytest.raises(InputError, match=r"scale: got 0\.5.*\n?.*space deltas"):
        merge_settings(scale=0.5, space="weights")


def test_all_invalid_values_are_listed_at_once():
    with pytest.raises(InputError) as caught:
        merge_settings(method="average", density=0.0, iterations=0, speed=1)
    for part in ("'average'", "'multislerp'", "density: got 0.0", "iterations:", "speed: unknown key"):
        assert part in str(caught.value)
    with pytest.raises(InputError, match=r"density: got \[0.5, 1.5\]"):
        merge_settings(density=[0.5, 1.5])


def test_a_method_that_was_never_validated_is_refused():
    with pytest.raises(InputError, match=r"'mean'.*multislerp"):
        check_settings(Merge().model_copy(update={"method": "mean"}), 2, "base")


def test_a_density_per_model_must_fit_their_number():
    check_settings(Merge(method="ties", density=[0.1, 0.2]), 2, "base")
    with pytest.raises(InputError, match="2 densities for 3 models"):
        check_settings(Merge(method="ties", density=[0.1, 0.2]), 3, "base")


@pytest.mark.parametrize(
    ("values", "weights"),
    [
        ({"method": "linear"}, [0.25, 0.75]),
        ({"method": "linear", "normalize": False}, [1.0, 3.0]),
        ({"method": "task_arithmetic"}, [1.0, 3.0]),
        ({"method": "task_arithmetic", "normalize": True}, [0.25, 0.75]),
        ({"method": "ties", "normalize": True}, [1.0, 3.0]),
    ],
)
def test_weights_are_normalized_by_setting_or_method(values, weights):
    inputs = [MergeInput(str(number), {}, str(number)) for number in range(2)]
    assert resolve_weights(inputs, Merge(weights=[1, 3], **values)) == weights


def test_driver_and_coordinator_start_without_torch():
    code = "import boom_ray.merge.driver, sys; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_the_command_line_lists_its_methods_and_has_the_settings_of_the_api():
    arguments = ["a", "b", "--out", "c", "--method", "ties", "--weights", "1,2", "--density", "0.2"]
    context = command.make_context("merge", [*arguments, "--num-workers", "3", "--base-model", "/base"])
    passed = {name: value for name, value in context.params.items() if name != "report"}
    defaults = {name: one.default for name, one in inspect.signature(merge_models).parameters.items()}
    given = {"models": ("a", "b"), "out": "c", "base": "/base", "num_workers": 3}
    given |= {"method": "ties", "weights": [1.0, 2.0], "density": 0.2}
    assert passed == {name: given.get(name, defaults[name]) for name in passed}
    assert passed.keys() == defaults.keys() - {"progress"}
    run = CliRunner().invoke(command, [*arguments, "--method", "mean"])
    assert run.exit_code == 2 and all(name in run.output for name in get_args(MergeMethod))

"""Weights that differ by group of layers."""

import pytest
import torch

from boom_ray.artifacts.tensors import read_places
from boom_ray.errors import InputError
from boom_ray.merge.check_inputs import check_inputs
from boom_ray.merge.layer_groups import default_groups, group_of
from boom_ray.merge.settings import resolve_weights
from boom_ray.recipe import Merge, identity
from tests.merge.oracle import FLOOR, streamed, textbook
from tests.merge.test_actors import tensors_of, variant

GROUPS = {"embeddings": [1.0, 0.0], "layers 0-0": [0.25, 0.75], "layers 1-1": [3.0, 1.0], "rest": [1, 1]}


def test_groups_divide_the_tensors_of_real_models(minilm, published_qwen3):
    assert default_groups(read_places(minilm)) == [
        "embeddings",
        *(f"layers {number}-{number}" for number in range(6)),
        "rest",  # the pooler
    ]
    assert default_groups(read_places(published_qwen3)) == list(GROUPS)
    names = [f"layers.{number}.mlp.up_proj.weight" for number in range(28)]
    ranges = default_groups(names)
    assert ranges[0] == "layers 0-4" and ranges[-1] == "layers 25-27" and len(ranges) == 6
    assert all(group_of(name, ranges) for name in names)
    for name, group in (
        ("embeddings.LayerNorm.weight", "embeddings"),
        ("wte.weight", "embeddings"),
        ("h.1.attn.c_attn.weight", "layers 1-1"),
        ("encoder.layer.0.output.dense.bias", "layers 0-0"),
        ("norm.weight", "rest"),
        ("layers.2.norm.weight", None),
    ):
        assert group_of(name, GROUPS) == group, name


def test_each_group_is_merged_with_its_own_weights(published_qwen3, tmp_path):
    models = [variant(published_qwen3, str(tmp_path / str(seed)), seed) for seed in (1, 2)]
    base, inputs = tensors_of(published_qwen3), [tensors_of(model) for model in models]
    for method, normalize in (("multislerp", None), ("linear", False)):
        settings = Merge(method=method, weights=GROUPS, normalize=normalize, dtype="float32")
        merged = streamed(models, published_qwen3, settings, str(tmp_path / method))
        for name, tensor in merged.items():
            own = GROUPS[group_of(name, GROUPS)]
            weights = own if normalize is False else [weight / sum(own) for weight in own]
            expected = textbook(method, [model[name] for model in inputs], weights, base[name])
            error = (tensor.double() - expected).abs()
            assert bool((error <= FLOOR[torch.float32] * expected.abs() + 1e-12).all()), name


def test_groups_that_do_not_divide_the_tensors_are_refused(published_qwen3):
    models = check_inputs([published_qwen3, published_qwen3], published_qwen3).models
    for weights, part in (
        ({name: values for name, values in GROUPS.items() if name != "rest"}, r"norm\.weight is in none of"),
        (GROUPS | {"layers 2-3": [1, 1]}, "no tensor is in the group 'layers 2-3'"),
        (GROUPS | {"rest": [1, 1, 1]}, "got 3 weights for 2 models"),
        (GROUPS | {"rest": [1, -1]}, "sum to 0"),
    ):
        with pytest.raises(InputError, match=part):
            resolve_weights(models, Merge(weights=weights))
    assert identity(Merge(weights=GROUPS))["weights"] == GROUPS

"""The self-test: the recorded vector, and the models it accepts and rejects."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from boom_ray import artifacts
from boom_ray.errors import InputError
from boom_ray.model import directory, self_test


@pytest.mark.parametrize("model", ["published_minilm", "published_qwen3"])
def test_the_record_has_the_vector_of_the_sentence(model, request):
    uri = request.getfixturevalue(model)
    record = artifacts.read_record(uri)
    vector = directory.load_encoder(uri).encode([self_test.SENTENCE])[0]
    assert np.allclose(record.self_test, vector[:64], atol=1e-5)
    without = record.model_copy(update={"self_test": []})
    assert record.digest == without.digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_passes_in_every_precision_and_a_changed_one_fails(published_minilm, dtype):
    recorded = self_test.compute(published_minilm)
    encoder = directory.load_encoder(published_minilm, dtype=dtype).for_inference()
    self_test.check(encoder, recorded, published_minilm)
    self_test.check(encoder, [], published_minilm)
    encoder.layout = replace(encoder.layout, pooling="cls")
    with pytest.raises(InputError, match=rf"{published_minilm}: .*cosine 0\.\d+"):
        self_test.check(encoder, recorded, published_minilm)


def test_a_model_with_nan_weights_is_rejected(published_qwen3, tmp_path):
    broken = str(tmp_path / "broken")
    shutil.copytree(published_qwen3, broken)
    weights = load_file(f"{broken}/model.safetensors")
    save_file({name: tensor * torch.nan for name, tensor in weights.items()}, f"{broken}/model.safetensors")
    with pytest.raises(InputError, match=rf"{broken}: .*norm nan"):
        self_test.compute(broken)

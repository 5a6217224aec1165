"""Packed weights: equal vectors, bounded memory, and the private operators of torch behind them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from boom_ray.model import directory
from boom_ray.model.packed_weights import PackedLinear, cpu_multiplies
from tests import texts

HAS_AVX = torch.backends.cpu.get_cpu_capability().startswith("AVX")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("bias", [True, False])
def test_the_private_operators_of_torch_compute_a_linear_layer(bias):
    layer = torch.nn.Linear(24, 16, bias=bias)
    inputs = torch.randn(3, 5, 24)
    with torch.inference_mode():
        outputs = PackedLinear(layer)(inputs)
    assert torch.allclose(outputs, linear(inputs, layer.weight, layer.bias), atol=1e-6)


@pytest.mark.parametrize("model", ["published_minilm", "published_qwen3"])
def test_packed_weights_do_not_change_the_vectors(model, request):
    path = request.getfixturevalue(model)
    documents = ["a", "x " * 500, *(text for pair in texts.functions("email") for text in pair)][:40]
    packed = directory.load_encoder(path).for_inference()
    assert np.abs(packed.encode(documents) - directory.load_encoder(path).encode(documents)).max() < 1e-5
    linear_layers = [module for module in packed.modules() if type(module) is torch.nn.Linear]
    assert bool(linear_layers) != HAS_AVX


MANY_SHAPES = """
import ctypes
import psutil
import torch
from boom_ray.model.packed_weights import PackedLinear, cpu_multiplies, pack_linear_layers
layers = torch.nn.Sequential(torch.nn.Linear(384, 1536), torch.nn.Linear(1536, 384))
pack_linear_layers(layers)
with torch.inference_mode():
    for count in range(1, 401):
        layers(torch.zeros(count, 384))
        if count in (200, 400):
            ctypes.CDLL(None).malloc_trim(0)
            print(psutil.Process().memory_info().rss >> 20)
"""


def test_memory_does_not_grow_with_the_number_of_input_shapes():
    process = subprocess.run([sys.executable, "-c", MANY_SHAPES], capture_output=True, text=True, check=True)
    before, after = map(int, process.stdout.split())
    assert after - before < 30  # MiB; about 100 with the default caches


def test_torch_still_reports_for_which_precisions_onednn_has_kernels():
    answer = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert type(answer) is bool and cpu_multiplies(torch.bfloat16) is answer
    assert cpu_multiplies(torch.float32) and not cpu_multiplies(torch.float64)
    if torch.cpu.get_capabilities().get("avx512_bf16"):
        assert answer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_of_a_precision_without_kernels_stay_as_they_are(dtype, published_minilm):
    encoder = directory.load_encoder(published_minilm, dtype=dtype).for_inference()
    packed = [module for module in encoder.modules() if isinstance(module, PackedLinear)]
    assert bool(packed) is (cpu_multiplies(dtype) and HAS_AVX)
    assert encoder.encode(["a text"]).shape == (1, 384)

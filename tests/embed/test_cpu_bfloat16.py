"""The private API of torch that the package relies on."""

import torch

from boom_ray.embed.cpu_bfloat16 import cpu_multiplies_bfloat16


def test_torch_still_reports_whether_onednn_has_bfloat16_kernels():
    answer = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert type(answer) is bool and cpu_multiplies_bfloat16() is answer
    if torch.cpu.get_capabilities().get("avx512_bf16"):
        assert answer

"""Packed weights: linear layers for inference on CPUs, with their weights in the layout of oneDNN.

By default PyTorch multiplies float32 matrices with MKL, from weights in their stored layout. With packed
weights, as TorchInductor uses them for frozen models, an encoder is about 1.4 times as fast on an AMD EPYC;
its embeddings are equal up to rounding. The only file that uses these private operators of torch.
"""

import os

import torch
from torch import Tensor, nn

ops = torch.ops.mkldnn
NUM_CACHED_SHAPES = 32  # a forward pass has a few: one for each kind of linear layer


def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels of a precision for this CPU; elsewhere it is emulated and slower.

    torch has no public query for it: `torch.cpu.get_capabilities` lists instructions, from which oneDNN
    chooses by rules of its own.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    supported = {torch.bfloat16: ops._is_mkldnn_bf16_supported, torch.float16: ops._is_mkldnn_fp16_supported}
    return bool(supported[dtype]()) if dtype in supported else dtype == torch.float32


class PackedLinear(nn.Module):
    """An `nn.Linear` with packed weights, which can be neither trained nor saved.

    Attributes:
        weight: None; some models read the attribute.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = None
        self.bias = linear.bias
        self.pack(linear.weight.detach())

    def pack(self, weight: Tensor) -> None:
        """Take other weights, [out_features, in_features]."""
        self.packed = ops._reorder_linear_weight(weight, None)

    def forward(self, inputs: Tensor) -> Tensor:
        """From [..., in_features] to [..., out_features], in the dtype of the weight."""
        return ops._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")


def pack_linear_layers(module: nn.Module) -> None:
    """Replace all linear layers of a module by packed ones, on CPUs that benefit.

    oneDNN and PyTorch cache the kernels of every input shape. The layers of one forward pass share a shape,
    but the next pass rarely has the same one: with the default of about a thousand entries the caches grow by
    hundreds of MiB.
    """
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, str(NUM_CACHED_SHAPES))  # read at the first product
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and cpu_multiplies(child.weight.dtype):
                setattr(parent, name, PackedLinear(child))


def assign(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace the values of a parameter, also of a packed layer, which keeps its device and dtype.

    Args:
        name: As in `named_parameters` before layers were packed.
    """
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if isinstance(owner, PackedLinear) and leaf == "weight":
        owner.pack(value.to(owner.packed.dtype))
    else:
        getattr(owner, leaf).data.copy_(value)

"""The one use of a private API of torch in this package."""


def cpu_multiplies_bfloat16() -> bool:
    """Whether oneDNN has bfloat16 kernels for this CPU; elsewhere bfloat16 is emulated and slower.

    torch has no public query for it: `torch.cpu.get_capabilities` lists instructions, from which oneDNN
    chooses by rules of its own.
    """
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

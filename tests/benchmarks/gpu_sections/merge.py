"""The two passes of a merge over tensors on the device, as a share of the bandwidth of a copy.

The blocks of `boom_ray.merge.gram` suit the cache of a CPU core; larger ones are measured as well.
"""

import torch

from boom_ray.merge import gram
from tests.benchmarks.gpu_sections.bench import Bench
from tests.benchmarks.gpu_sections.clock import copy_rate, forget, median_seconds

NUM_MODELS = 5
CHECKED = 1 << 18  # elements whose products are compared with float64


def run(bench: Bench) -> None:
    """Emit the rates of both passes for each size of a block."""
    copied = copy_rate(bench.device, bench.sized(1 << 32, 1 << 24))
    forget()
    pieces = models_and_base(bench, bench.sized(1 << 26, 1 << 18))
    coefficients = torch.full((NUM_MODELS,), 1 / NUM_MODELS, dtype=torch.float64, device=bench.device)
    products = torch.zeros(NUM_MODELS, NUM_MODELS, dtype=torch.float64, device=bench.device)
    combined = pieces.nbytes + pieces[0].nbytes
    for block in (gram.BLOCK, *bench.sized((1 << 18, 1 << 20, 1 << 23), ())):
        gram.BLOCK = block
        accumulating = median_seconds(lambda: gram.accumulate(products, pieces, torch.float32), 3, 1)
        combining = median_seconds(
            lambda: gram.combine(pieces, coefficients, torch.float32, torch.bfloat16), 3, 1
        )
        error = gram_error(pieces[:, :CHECKED])
        passes = {"Gram pass": (pieces.nbytes, accumulating), "combine pass": (combined, combining)}
        for name, (num_bytes, seconds) in passes.items():
            rate = num_bytes / seconds
            figures = {"gb_per_second": rate / 1e9, "share_of_copy": rate / copied, "error": error}
            bench.emit(f"{name}, blocks of {block:,}", **figures)


def models_and_base(bench: Bench, num_elements: int) -> torch.Tensor:
    """[M + 1, n] bfloat16: one tensor of fine-tuned models, and of their base."""
    torch.manual_seed(0)
    base = torch.randn(num_elements, device=bench.device) * 0.02
    moved = [base + 0.002 * torch.randn_like(base) for _ in range(NUM_MODELS)]
    return torch.stack([piece.bfloat16() for piece in (*moved, base)])


def gram_error(pieces: torch.Tensor) -> float:
    """Relative error of the Gram matrix, compared with float64."""
    deltas = pieces[:-1].double() - pieces[-1].double()
    exact = deltas @ deltas.T
    products = torch.zeros_like(exact)
    gram.accumulate(products, pieces, torch.float32)
    return float((products - exact).norm() / exact.norm())

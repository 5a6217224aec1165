"""What the device can do at best: matrix products, copies, transfers and launches."""

import torch

from tests.benchmarks.gpu_sections.bench import Bench
from tests.benchmarks.gpu_sections.clock import copy_rate, median_seconds, product_rate

NUM_LAUNCHES = 1000


def run(bench: Bench) -> None:
    """Emit the ceilings."""
    for size in bench.sized((8192, 4096), (256,)):
        bench.emit(f"bf16 product {size}", tflops=product_rate(bench.device, size) / 1e12)
    copied = copy_rate(bench.device, bench.sized(1 << 32, 1 << 24))
    bench.emit("copy on the device", gb_per_second=copied / 1e9)
    transfers(bench)
    one = torch.ones(1, device=bench.device)
    spent = median_seconds(lambda: [one.add_(1) for _ in range(NUM_LAUNCHES)])
    bench.emit("launch of a kernel", microseconds=spent / NUM_LAUNCHES * 1e6)


def transfers(bench: Bench) -> None:
    """Copies between host and device, from ordinary and from pinned memory."""
    host = torch.zeros(bench.sized(1 << 28, 1 << 22), dtype=torch.uint8)
    device = torch.empty_like(host, device=bench.device)
    sources = {"pageable": host} | ({} if bench.tiny else {"pinned": host.pin_memory()})
    for kind, memory in sources.items():
        to_device = median_seconds(lambda memory=memory: device.copy_(memory, non_blocking=True))  # type: ignore[misc]
        to_host = median_seconds(lambda memory=memory: memory.copy_(device, non_blocking=True))  # type: ignore[misc]
        rates = {
            "to_device_gb_per_second": host.nbytes / to_device / 1e9,
            "to_host_gb_per_second": host.nbytes / to_host / 1e9,
        }
        bench.emit(f"transfer, {kind} memory", **rates)

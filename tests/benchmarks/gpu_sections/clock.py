"""Times and rates of work on a device."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Work = Callable[[], object]


def synchronize() -> None:
    """Wait until the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def forget() -> None:
    """Return the memory of unused tensors to the device, for the next tool to take."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def seconds_of(work: Work) -> float:
    """Seconds of one call, until the device has finished it."""
    synchronize()
    since = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - since


def median_seconds(work: Work, repeats: int = 5, warm: int = 2) -> float:
    """Median seconds of `repeats` calls after `warm` ones."""
    return statistics.median([seconds_of(work) for _ in range(warm + repeats)][warm:])


def alternate(tools: Mapping[str, Work], rounds: int, calls: int) -> dict[str, list[float]]:
    """Seconds of a call of each tool in every round, one tool after the other.

    A tool finds the memory of the device free of what the others cached, and runs once before it is timed.
    """
    spent: dict[str, list[float]] = {name: [] for name in tools}
    for _ in range(rounds):
        for name, work in tools.items():
            forget()
            work()
            spent[name].append(seconds_of(lambda work=work: [work() for _ in range(calls)]) / calls)  # type: ignore[misc]
    return spent


def speedup(ours: Sequence[float], *peers: Sequence[float]) -> float:
    """Median over rounds of the seconds of the fastest peer over ours."""
    return statistics.median(min(theirs) / own for own, *theirs in zip(ours, *peers, strict=True))


def product_rate(device: str, size: int) -> float:
    """Operations per second of a square bf16 matrix product, the rate that utilization is a share of."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: left @ right, repeats=20, warm=5)


def copy_rate(device: str, num_bytes: int) -> float:
    """Bytes per second, read and written, of a copy on the device."""
    source = torch.zeros(num_bytes, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * num_bytes / median_seconds(lambda: target.copy_(source), repeats=10)

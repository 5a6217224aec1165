"""The operations that take longest, as torch's profiler sees them."""

import os

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.gpu_sections.bench import Bench
from tests.benchmarks.gpu_sections.clock import Work, seconds_of

NUM_OPERATIONS = 15


def write(bench: Bench, name: str, work: Work) -> None:
    """Write the longest operations of a call to `profile_NAME.txt`, and emit how busy the device was."""
    activities = [ProfilerActivity.CPU, *([] if bench.tiny else [ProfilerActivity.CUDA])]
    with profile(activities=activities) as recorded:
        seconds = seconds_of(work)
    averages = recorded.key_averages()
    order = "self_cpu_time_total" if bench.tiny else "self_device_time_total"
    table = averages.table(sort_by=order, row_limit=NUM_OPERATIONS, max_name_column_width=90)
    with open(os.path.join(bench.out, f"profile_{name}.txt"), "w", encoding="utf-8") as file:
        file.write(table)
    kernels = [one for one in averages if one.device_type == DeviceType.CUDA and not one.is_user_annotation]
    busy = sum(one.self_device_time_total for one in kernels) / 1e6
    bench.emit(f"profile_{name}.txt", kernels=sum(one.count for one in kernels), device_busy=busy / seconds)

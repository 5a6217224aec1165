"""The pipeline with ZeRO 3: the driver is killed after a checkpoint, and the same command resumes the run."""

import time

import psutil

from boom_ray.artifacts import checkpoints
from tests.benchmarks.gpu_sections.bench import Bench
from tests.benchmarks.gpu_sections.pipeline import (
    boom_ray,
    layout,
    local_ray,
    median_of,
    started,
    steps_of,
    write_recipe,
)


def run(bench: Bench) -> None:
    """Emit the step of the checkpoint, that of the resumption, and the time of the second attempt."""
    num_steps, every = bench.sized((120, 20), (24, 4))
    recipe = write_recipe(bench, "zero3", num_steps, zero_stage=3, save_every_steps=every)
    made = layout(bench, "zero3")
    with local_ray():
        with started("run", recipe) as driver:
            saved = saved_step(driver, made.checkpoints("bag-1"))
        killed = time.time()
        seconds = boom_ray("run", recipe)
    steps = steps_of(made.model("bag-1"))
    resumed = min(step["step"] for step in steps if step["time"] > killed)
    bench.emit(
        "boom-ray run, ZeRO 3, killed and resumed",
        seconds=seconds,
        saved_step=saved,
        resumed_at_step=resumed,
        tokens_per_second=median_of(steps, "tokens_per_second"),
        mfu=median_of(steps, "mfu"),
    )
    assert resumed > saved and [step["step"] for step in steps] == list(range(1, num_steps + 1))


def saved_step(driver: psutil.Popen, directory: str) -> int:
    """Wait for the first complete checkpoint of a bag; returns its step.

    Raises:
        SystemExit: if the driver ends before.
    """
    while driver.poll() is None:
        for _, state in checkpoints.find(directory):
            if state is not None:
                return state["step"]
        time.sleep(0.1)
    raise SystemExit("the run ended before its first checkpoint")

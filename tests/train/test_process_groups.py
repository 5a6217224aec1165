"""The private API of `torch.distributed` exists and has its effect."""

import subprocess
import sys

SILENT_RANK = """
import sys, time
import torch, torch.distributed as dist
from boom_ray.train.process_groups import set_collective_timeout

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
own = dist.new_group([0, 1])  # as DeepSpeed creates them, with the default timeout of 30 minutes
set_collective_timeout(2)
if rank == 1:
    time.sleep(30)
started = time.monotonic()
try:
    dist.all_reduce(torch.ones(1), group=own)
except RuntimeError as error:
    print(f"{time.monotonic() - started:.1f}")
"""


def test_the_timeout_applies_to_groups_that_others_created(tmp_path):
    command = [sys.executable, "-c", SILENT_RANK]
    silent = subprocess.Popen([*command, "1", str(tmp_path / "store")])
    try:
        waiting = subprocess.run(
            [*command, "0", str(tmp_path / "store")], capture_output=True, text=True, timeout=60
        )
    finally:
        silent.kill()
        silent.wait()
    assert 1.5 < float(waiting.stdout) < 20, waiting.stderr

"""The private API of Ray that boom-ray uses has the signature and the effect that it relies on."""

import inspect
import os
import subprocess
import sys

import pytest
from ray._private import worker
from ray._private.services import find_bootstrap_address

from boom_ray.runtime.ray_private import hide_process_counts, last_address

COUNT = "WARNING: 8 PYTHON worker processes have been started on node: 5 with address: 10.0.0.1, which is 4x"
RESTARTABLE_ACTOR = """
import numpy as np, ray
from boom_ray.runtime import cluster
cluster.connect(dashboard=False)
@ray.remote(num_cpus=0, max_restarts=1)
class Restartable:
    def __init__(self, array): self.size = array.size
    def read(self): return self.size
print("read", ray.get(Restartable.remote(ray.put(np.zeros(1 << 20))).read.remote()))
"""


def test_the_last_address_is_read_from_the_file_that_ray_start_writes(tmp_path, monkeypatch):
    assert list(inspect.signature(find_bootstrap_address).parameters) == ["temp_dir"]
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert last_address() is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379\n")
    assert last_address() == "10.0.0.1:6379"


def test_counts_of_processes_are_not_printed_and_other_messages_are(capsys):
    hide_process_counts()
    assert "print_to_stdstream" in worker.listen_error_messages.__code__.co_names
    for line in (COUNT, "a worker was killed: out of memory"):
        worker.print_to_stdstream({"lines": [line], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    printed = capsys.readouterr().out
    assert "out of memory" in printed and "worker processes" not in printed


@pytest.mark.parametrize("level", [None, "error"])
def test_native_code_does_not_write_to_the_terminal_unless_it_is_debugged(level, tmp_path):
    environment = {**os.environ, "RAY_BACKEND_LOG_LEVEL": level or ""}
    if level is None:
        del environment["RAY_BACKEND_LOG_LEVEL"]
    del environment["PYTEST_CURRENT_TEST"]
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", RESTARTABLE_ACTOR]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "read 1048576" in result.stdout
    assert ("core_worker.cc" in result.stderr) == (level == "error")

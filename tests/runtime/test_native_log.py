"""Native code of Ray writes nothing to the terminal that a user cannot act on."""

import os
import subprocess
import sys

import pytest

from boom_ray.runtime import native_log

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
    assert ("RAY_BACKEND_LOG_LEVEL" in result.stderr) == (level == "error")


def test_other_lines_that_are_written_while_ray_starts_follow(capfd, monkeypatch):
    monkeypatch.delenv(native_log.LEVEL, raising=False)
    with pytest.raises(ConnectionError), native_log.quiet():
        os.write(2, b"a reason\nRAY_BACKEND_LOG_LEVEL is read\n")
        raise ConnectionError
    assert capfd.readouterr().err == "a reason\n"
    assert native_log.LEVEL not in os.environ

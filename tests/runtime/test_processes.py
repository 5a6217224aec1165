"""Processes that were killed: what they left is known from what is in use, and is swept up."""

import os
import signal
import subprocess
import sys

from boom_ray.runtime import processes, scratch


def name_of_another() -> str:
    """The name of a process that has ended."""
    code = "from boom_ray import process; print(processes.own_name())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()


def test_this_process_runs_and_another_has_ended():
    assert processes.runs_here(processes.own_name()) and not processes.has_ended(processes.own_name())
    other = name_of_another()
    assert processes.has_ended(other) and not processes.runs_here(other)


def test_a_killed_process_that_nobody_collects_has_ended():
    code = "from boom_ray import process; print(processes.own_name(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        name = other.stdout.readline().decode().strip()
        assert processes.runs_here(name)
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert processes.has_ended(name) and not processes.runs_here(name)


def test_a_number_that_is_used_again_is_another_process():
    """In a container that was started again the number of the process that died may be our own."""
    machine, number, started = processes.own_name().rsplit("-", 2)
    earlier = f"{machine}-{number}-{int(started) - 60_000}"
    assert processes.has_ended(earlier) and not processes.runs_here(earlier)


def test_nothing_is_known_of_processes_of_other_machines():
    _, number, started = processes.own_name().rsplit("-", 2)
    there = f"elsewhere-{number}-{started}"
    assert processes.is_name(there) and not processes.has_ended(there) and not processes.runs_here(there)


def test_what_a_killed_process_left_on_the_disk_is_deleted_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    code = (
        "import os, signal\nfrom boom_ray import scratch\nprint(scratch.directory('checkpoint'), flush=True)"
    )
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run([sys.executable, "-c", f"{code}\n{kill}"], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL and os.listdir(tmp_path) == [
        os.path.basename(killed.stdout.strip())
    ]
    (tmp_path / "boom-ray-of-somebody-else").mkdir()
    mine = [scratch.directory("checkpoint"), scratch.directory("stage")]
    assert sorted(os.listdir(tmp_path)) == sorted([*map(os.path.basename, mine), "boom-ray-of-somebody-else"])

"""Killed processes: their leftovers are distinguished from files in use, and deleted."""

import os
import signal
import subprocess
import sys

from boom_ray.runtime import processes, scratch


def name_of_an_ended_process() -> str:
    code = "from boom_ray.runtime import processes; print(processes.own_name())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_this_process_runs_and_another_has_ended():
    assert processes.runs_here(processes.own_name()) and not processes.has_ended(processes.own_name())
    other = name_of_an_ended_process()
    assert processes.has_ended(other) and not processes.runs_here(other)


def test_a_killed_process_that_is_not_reaped_has_ended():
    code = "from boom_ray.runtime import processes; print(processes.own_name(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        name = other.stdout.readline().decode().strip()
        assert processes.runs_here(name)
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert processes.has_ended(name) and not processes.runs_here(name)


def test_a_pid_that_is_used_again_is_another_process():
    """In a restarted container this process may have the PID of the one that died."""
    machine, pid, started = processes.own_name().rsplit("-", 2)
    earlier = f"{machine}-{pid}-{int(started) - 60_000}"
    assert processes.has_ended(earlier) and not processes.runs_here(earlier)


def test_processes_of_other_machines_are_neither_running_nor_ended():
    _, pid, started = processes.own_name().rsplit("-", 2)
    remote = f"elsewhere-{pid}-{started}"
    assert processes.is_name(remote) and not processes.has_ended(remote) and not processes.runs_here(remote)


def test_scratch_directories_of_a_killed_process_are_deleted_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    code = (
        "import os, signal\nfrom boom_ray.runtime import scratch\n"
        "print(scratch.directory('checkpoint'), flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == [os.path.basename(killed.stdout.strip())]
    (tmp_path / "boom-ray-of-another-program").mkdir()
    own = [scratch.directory("checkpoint"), scratch.directory("stage")]
    assert sorted(os.listdir(tmp_path)) == sorted(
        [*map(os.path.basename, own), "boom-ray-of-another-program"]
    )

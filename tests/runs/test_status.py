"""The status of a run while its drivers run, fail, are stopped, and are killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import ray
from click.testing import CliRunner

from boom_ray import storage
from boom_ray.artifacts.checkpoints import Saver
from boom_ray.cli import main
from boom_ray.data import bags, corpus
from boom_ray.data.batches import num_steps
from boom_ray.errors import BoomError
from boom_ray.recipe import Recipe
from boom_ray.runs import status
from boom_ray.runs.driver import driving
from boom_ray.runs.heartbeat import BagProgress
from boom_ray.runs.identity import claim


@pytest.fixture
def begun(make_recipe, qwen3) -> Recipe:
    """A run with corpus and bags, and without a driver."""
    recipe = make_recipe(qwen3)
    claim(recipe)
    prepared = corpus.prepare(recipe.data, f"{recipe.root}/corpus", recipe.name)
    bags.publish(prepared, recipe.bags, f"{recipe.root}/bags")
    return recipe


def states(found: status.RunStatus) -> dict[str, str]:
    return {part.name: part.state for part in found.making["v0001"]}


def lines(root: str) -> tuple[int, str]:
    """Exit code and output of the command, as in a log."""
    result = CliRunner().invoke(main, ["status", root])
    return result.exit_code, result.output


def start(root: str, busy: str) -> subprocess.Popen[str]:
    """A process whose heartbeat reports that it trains bag-1."""
    code = f"""
import hashlib, time, ray
from boom_ray.runtime import cluster
from boom_ray.runtime import signals
from boom_ray.runs.driver import driving
from boom_ray.runs.heartbeat import BagProgress
with signals.exit_on_signal(), driving({root!r}, "run", "v0001") as driver:
    cluster.connect()
    driver.show({{"bag-1": BagProgress(step=1, num_steps=9, time=time.time())}})
    driver.begin("train")
    print("begun", flush=True)
    {busy}
"""
    address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def await_state(root: str, name: str, state: str) -> None:
    deadline = time.monotonic() + 20
    while states(status.read(root))[name] != state:
        assert time.monotonic() < deadline, status.read(root)
        time.sleep(0.05)


def await_drivers(root: str, expected: list[str]) -> None:
    deadline = time.monotonic() + 20
    while (found := [driver.state for driver in status.read(root).drivers]) != expected:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def test_no_run_is_an_error(tmp_path):
    code, output = lines(str(tmp_path / "nowhere"))
    assert code == 1 and f"{tmp_path}/nowhere: no run there" in output


def test_a_running_driver_shows_its_bags_and_is_lost_without_heartbeats(begun, tmp_path):
    root = begun.root
    assert states(status.read(root)) == {"corpus": "done", "bags": "done", "merge": "waiting",
        "evaluation": "waiting", "bag-1": "waiting", "bag-2": "waiting"}  # fmt: skip
    assert lines(root)[0] == 1, "unfinished, and no driver runs"
    saver = Saver(f"{root}/checkpoints/bag-2", "a", 0, lambda own: [own])
    saver.store({}, 2, {"step": 2})
    saver.wait()

    with driving(root, "train", "v0001") as driver:
        driver.show({"bag-2": BagProgress(step=3, num_steps=9, attempt=2, time=time.time() - 300)})
        driver.begin("train")
        await_state(root, "bag-2", "running")
        found = status.read(root)
        assert found.is_well and found.state == "running"
        facts = found.making["v0001"][3].facts
        sizes = storage.read_bytes(f"{root}/bags/artifact.json")
        total = num_steps(json.loads(sizes)["config"]["tasks"][1].values(), begun.train)
        assert (facts["step"], facts["checkpoint_step"], facts["attempt"]) == (3, 2, 2)
        assert facts["num_steps"] == total and 299 < facts["seconds_silent"] < 330
        code, output = lines(root)
        assert code == 0 and f"bag-2: running: step 3, complete checkpoint at step 2 of {total}" in output
        assert f"process {os.getpid()}" in output and "last step 5 min ago" in output
        silent = status.read(root, now=time.time() + 600)
        assert (
            silent.state == states(silent)["bag-2"] == "lost"
            and f"process {os.getpid()} " in silent.reason
            and "10 min" in silent.reason
        )
    assert status.read(root).state == "done"


def test_the_reason_of_a_failure_is_shown(begun):
    root = begun.root
    with pytest.raises(BoomError), driving(root, "run", "v0001") as driver:
        driver.begin("merge")
        raise BoomError("tensor x: NaN")
    with pytest.raises(ZeroDivisionError), driving(root, "update", "v0002"):
        1 / 0  # noqa: B018
    found = status.read(root)
    assert (found.state, found.reason) == ("failed", "ZeroDivisionError: division by zero")
    merge = next(part for part in found.making["v0001"] if part.name == "merge")
    assert (merge.state, merge.detail) == ("failed", "tensor x: NaN")
    code, output = lines(root)
    assert code == 1 and output.splitlines()[-1].endswith("failed: ZeroDivisionError: division by zero")
    with driving(root, "run", "v0001") as driver:
        driver.begin("evaluate")
        await_state(root, "evaluation", "running")
        assert states(status.read(root))["merge"] == "done"
    assert lines(root)[0] == 0


def test_a_second_driver_waits_for_the_first_and_goes_on_when_it_dies(begun):
    root, begins = begun.root, threading.Event()

    def second() -> None:
        with driving(root, "train", "v0001"):
            begins.set()

    first = start(root, "time.sleep(120)")
    thread = threading.Thread(target=second)
    thread.start()
    try:
        await_drivers(root, ["running", "waiting"])
        with driving(root, "update", "v0002"):
            pass  # another version waits for nobody
        assert not begins.is_set() and status.read(root).is_well
    finally:
        first.kill()
        first.wait()
        thread.join(30)
    assert begins.is_set()
    assert status.read(root).state == "done"


def test_drivers_of_single_bags_wait_for_drivers_of_the_same_bag_and_of_all(begun):
    with driving(begun.root, "train", "v0001", bag=0), driving(begun.root, "train", "v0001", bag=1) as driver:
        await_drivers(begun.root, ["running", "running"])
        mine = driver.beat.model_copy(update={"state": "waiting"})
        others = [driver.beat.model_copy(update={"bag": bag, "driver": "other"}) for bag in (0, 1, None)]
        assert [len(mine.ahead([other])) for other in others] == [0, 1, 1]


def test_storage_that_cannot_be_written_fails_no_stage(begun, caplog):
    caplog.set_level("INFO", logger="boom_ray")  # libraries change the level of the root logger
    storage.write_bytes(f"{begun.root}/drivers", b"a file, where a directory should be")
    with driving(begun.root, "run", "v0001") as driver:
        driver.begin("train")
    (warning,) = [entry for entry in caplog.records if entry.levelname == "WARNING"]
    assert f"{begun.root}/drivers" in warning.getMessage()


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    "busy",
    [
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
        "ray.get(ray.remote(lambda: time.sleep(60)).remote())",
    ],
)
def test_a_stopped_driver_ends_at_once_and_reports_what_is_kept(begun, busy):
    process = start(begun.root, busy)
    time.sleep(0.5)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM and time.monotonic() - sent < 3
    (last,) = output.splitlines()
    assert last.startswith("stopped by SIGTERM at v0001, train: ") and "bag-1 will resume" in last
    found = status.read(begun.root)
    assert (found.state, found.reason, found.is_well) == ("stopped", "by SIGTERM", False)


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_driver_is_lost(begun):
    process = start(begun.root, "time.sleep(60)")
    await_state(begun.root, "bag-1", "running")
    process.kill()
    process.wait(20)
    found = status.read(begun.root)
    assert states(found)["bag-1"] == found.state == "lost"
    assert f"process {process.pid} " in found.reason

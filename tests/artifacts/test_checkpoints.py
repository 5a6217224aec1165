"""Checkpoints are complete, or invisible."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from boom_ray.artifacts import checkpoints
from boom_ray.artifacts.checkpoints import MANIFEST, Entries, Saver


def savers(root: str, num_ranks: int = 2, attempt: str = "a") -> list[Saver]:
    """A saver per rank; all ranks are threads of this process."""
    everyone: list[Entries | None] = [None] * num_ranks
    barrier = threading.Barrier(num_ranks, timeout=20)

    def gather_of(rank: int) -> Callable[[Entries | None], list[Entries | None]]:
        def gather(own: Entries | None) -> list[Entries | None]:
            everyone[rank] = own
            barrier.wait()
            found = list(everyone)
            barrier.wait()
            return found

        return gather

    return [Saver(root, attempt, rank, gather_of(rank)) for rank in range(num_ranks)]


def store(saver: Saver, step: int) -> None:
    saver.store({f"state-of-{saver.rank}": [b"x" * step, b"y"]}, step, {"step": step, "loss": float("nan")})


def save(root: str, *steps: int, attempt: str = "a") -> None:
    ranks = savers(root, attempt=attempt)
    for step in steps:
        for saver in ranks:
            store(saver, step)
    for saver in ranks:
        saver.wait()


def newest_step(root: str) -> int | None:
    found = checkpoints.newest(root)
    return found and found[1]["step"]


def test_a_checkpoint_is_complete_when_all_ranks_have_stored_theirs(tmp_path, caplog):
    caplog.set_level("INFO", logger="boom_ray")  # libraries change the level of the root logger
    root = str(tmp_path)
    assert newest_step(root) is None
    save(root, 2)
    assert newest_step(root) == 2
    first, second = savers(root)
    store(first, 4)
    while not os.path.exists(f"{root}/step-00000004-a/state-of-0"):
        pass
    assert newest_step(root) == 2 and "step-00000004-a: incomplete, not used: it has no" in caplog.text
    store(second, 4)
    first.wait()
    assert newest_step(root) == 4
    assert {name for _, m in checkpoints.complete(root) for name in m.files} == {"state-of-0", "state-of-1"}


def flip(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
    ("harm", "name", "reason"),
    [
        (os.remove, "state-of-1", "state-of-1 is missing"),
        (lambda path: os.truncate(path, 1), "state-of-1", "state-of-1 has 1 bytes, recorded are 5"),
        (os.remove, MANIFEST, f"it has no {MANIFEST}"),
        (lambda path: os.truncate(path, 9), MANIFEST, f"{MANIFEST} is damaged"),
    ],
)
def test_the_previous_checkpoint_is_used_if_the_newest_is_damaged(tmp_path, caplog, harm, name, reason):
    caplog.set_level("INFO", logger="boom_ray")
    root = str(tmp_path)
    save(root, 2, 4)
    harm(f"{root}/step-00000004-a/{name}")
    assert newest_step(root) == 2 and f"step-00000004-a: incomplete, not used: {reason}" in caplog.text


def test_a_flipped_bit_is_found_in_every_file(tmp_path):
    root = str(tmp_path)
    save(root, 2, 4)
    [(uri, manifest), _] = list(checkpoints.complete(root))
    assert checkpoints.damage(uri, manifest.files) == []
    flip(f"{uri}/state-of-1")
    [problem] = checkpoints.damage(uri, manifest.files)
    assert problem.startswith("state-of-1: ")
    changed = json.loads((tmp_path / "step-00000004-a" / MANIFEST).read_text())
    changed["state"]["step"] = 5
    (tmp_path / "step-00000004-a" / MANIFEST).write_text(json.dumps(changed))
    assert newest_step(root) == 2


def test_a_manifest_that_is_being_written_is_not_read(tmp_path):
    root = str(tmp_path)
    save(root, 2)
    os.rename(f"{root}/step-00000002-a/{MANIFEST}", f"{root}/step-00000002-a/{MANIFEST}.7.tmp")
    assert newest_step(root) is None


def test_files_of_two_attempts_never_make_one_checkpoint(tmp_path):
    root = str(tmp_path)
    [first, _], [_, second] = savers(root, attempt="a"), savers(root, attempt="b")
    for saver in (first, second):
        saver.gather = lambda own: [own, None]  # the other rank of the attempt was killed
        store(saver, 2)
    with pytest.raises(OSError, match=r"step-00000002-a: rank 1 could not store"):
        first.wait()
    second.wait()
    assert newest_step(root) is None


def test_two_complete_checkpoints_and_a_newer_one_are_kept(tmp_path):
    root = str(tmp_path)
    save(root, 2, 4, 6)
    os.makedirs(f"{root}/step-00000008-a")
    checkpoints.prune(root)
    assert sorted(os.listdir(root)) == [f"step-0000000{step}-a" for step in (4, 6, 8)]


def test_a_rank_that_cannot_store_leaves_no_checkpoint_and_no_rank_waiting(tmp_path):
    def broken() -> Iterator[bytes]:
        yield b"x"
        raise OSError("no such device")

    first, second = savers(str(tmp_path))
    store(first, 2)
    second.store({"state-of-1": broken()}, 2, {})
    with pytest.raises(OSError, match="no such device"):
        second.wait()
    with pytest.raises(OSError, match=r"rank 1 could not store"):
        first.wait()
    assert newest_step(str(tmp_path)) is None


def test_failing_storage_raises_at_the_next_checkpoint(tmp_path):
    (tmp_path / "file").write_text("in the way")
    [saver] = savers(str(tmp_path / "file"), 1)
    files: dict[str, Any] = {"state": [b"x"]}
    saver.store(files, 2, {})
    with pytest.raises(OSError, match="file"):
        saver.store(files, 4, {})

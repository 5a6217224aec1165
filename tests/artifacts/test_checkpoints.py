"""Checkpoints are complete, or invisible."""

import os

import pytest

from boom_ray.artifacts import checkpoints
from boom_ray.artifacts.checkpoints import Saver


def save(root, step, rank, num_ranks=2, attempt="a"):
    saver = Saver(root, attempt, rank, num_ranks)
    local = saver.directory()
    with open(os.path.join(local, f"state-of-{rank}"), "wb") as file:
        file.write(b"x" * (step + 1))
    saver.store(local, step, {"step": step})
    saver.wait()
    assert not os.path.exists(local)


def newest_step(root):
    found = checkpoints.newest(root)
    return found and found[1]["step"]


def test_a_checkpoint_is_complete_when_all_ranks_have_stored_theirs(tmp_path, capsys):
    root = str(tmp_path)
    assert newest_step(root) is None
    save(root, 2, rank=0)
    assert newest_step(root) is None
    save(root, 2, rank=1)
    assert newest_step(root) == 2
    save(root, 4, rank=1)
    assert newest_step(root) == 2 and "incomplete, not used" in capsys.readouterr().out
    save(root, 4, rank=0)
    assert newest_step(root) == 4


@pytest.mark.parametrize("harm", ["missing", "short"])
def test_the_previous_checkpoint_is_used_if_the_newest_is_damaged(tmp_path, harm):
    root = str(tmp_path)
    for step in (2, 4):
        for rank in (0, 1):
            save(root, step, rank)
    harmed = f"{root}/step-00000004-a/state-of-1"
    os.remove(harmed) if harm == "missing" else os.truncate(harmed, 1)
    assert newest_step(root) == 2


def test_a_manifest_that_is_being_written_is_not_read(tmp_path):
    root = str(tmp_path)
    save(root, 2, rank=0, num_ranks=1)
    os.rename(f"{root}/step-00000002-a/rank-0-of-1.json", f"{root}/step-00000002-a/rank-0-of-1.json.7.tmp")
    assert newest_step(root) is None


def test_files_of_two_attempts_never_make_one_checkpoint(tmp_path):
    root = str(tmp_path)
    save(root, 2, rank=0, attempt="a")
    save(root, 2, rank=1, attempt="b")
    assert newest_step(root) is None


def test_two_complete_checkpoints_and_a_newer_one_are_kept(tmp_path):
    root = str(tmp_path)
    for step in (2, 4, 6):
        for rank in (1, 0):
            save(root, step, rank)
    save(root, 8, rank=1)
    checkpoints.prune(root)
    assert sorted(os.listdir(root)) == [f"step-0000000{step}-a" for step in (4, 6, 8)]


def test_failing_storage_raises_at_the_next_checkpoint(tmp_path):
    (tmp_path / "file").write_text("in the way")
    saver = Saver(str(tmp_path / "file"), "a", 0, 1)
    saver.store(saver.directory(), 2, {})
    with pytest.raises(OSError, match="file"):
        saver.directory()

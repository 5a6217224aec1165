"""Artifacts: complete and verifiable, or not there."""

import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from boom_ray import artifacts
from boom_ray.artifacts import ModelRecord, staging
from boom_ray.errors import BoomError


def record(**fields):
    return ModelRecord(name="n", version="v", fingerprint="f", **fields)


def publish(target):
    with staging.staged(str(target)) as stage:
        save_file({"a": np.arange(8, dtype=np.float32), "b": np.ones((2, 2), np.float32)},
                  os.path.join(stage.local, "model.safetensors"))  # fmt: skip
        os.makedirs(os.path.join(stage.local, "sub"))
        with open(os.path.join(stage.local, "sub", "config.json"), "w") as file:
            file.write("{}")
        stage.commit(record())
    return str(target)


def test_a_published_artifact_verifies_and_is_world_readable(tmp_path):
    target = publish(tmp_path / "model")
    verified = artifacts.verify(target)
    assert set(verified.files) == {"model.safetensors", "sub/config.json"}
    assert verified.tensors["b"].shape == [2, 2] and verified.tensors["b"].dtype == "F32"
    assert os.stat(os.path.join(target, "model.safetensors")).st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: os.truncate(path / "model.safetensors", 40), "model.safetensors: 40 bytes, recorded"),
        (lambda path: os.remove(path / "sub" / "config.json"), "sub/config.json: missing"),
        (lambda path: (path / "extra").write_text("x"), "extra: not in the record"),
    ],
)
def test_verify_names_the_damage(tmp_path, damage, message):
    publish(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(BoomError) as caught:
        artifacts.verify(str(tmp_path / "model"))
    assert message in str(caught.value)


def test_verify_names_the_tensor_with_a_flipped_bit(tmp_path):
    target = publish(tmp_path / "model")
    with open(os.path.join(target, "model.safetensors"), "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(BoomError, match=r"model\.safetensors: its content differs.*tensor b"):
        artifacts.verify(target)


def test_a_directory_without_a_record_is_not_an_artifact(tmp_path):
    assert artifacts.read_record(str(tmp_path)) is None
    with pytest.raises(BoomError, match="not an artifact"):
        artifacts.verify(str(tmp_path))


def test_a_failed_producer_leaves_no_files(tmp_path):
    with pytest.raises(ZeroDivisionError), staging.staged(str(tmp_path / "model")) as stage:
        with open(os.path.join(stage.local, "half"), "w") as file:
            file.write("x")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_killed_producer_leaves_nothing_visible_and_the_next_one_cleans_up(tmp_path):
    code = f"""
import os, signal
from boom_ray.artifacts import staging
stage = staging.Stage({str(tmp_path / "model")!r})
open(os.path.join(stage.local, "half"), "w").write("x")
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -9
    assert artifacts.read_record(str(tmp_path / "model")) is None
    assert len(os.listdir(tmp_path)) == 1
    publish(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]


def test_a_taken_target_is_refused_and_kept(tmp_path):
    target = publish(tmp_path / "model")
    before = artifacts.verify(target)
    with pytest.raises(BoomError, match="exists already"):
        publish(tmp_path / "model")
    assert artifacts.verify(target) == before


def test_one_of_two_producers_wins_and_the_other_is_refused(tmp_path):
    target = str(tmp_path / "model")
    first, second = staging.Stage(target), staging.Stage(target)
    for stage, text in ((first, "1"), (second, "2")):
        with open(os.path.join(stage.local, "file"), "w") as file:
            file.write(text)
    first.commit(record())
    with pytest.raises(BoomError, match="exists already"):
        second.commit(record())
    second.discard()
    assert (tmp_path / "model" / "file").read_text() == "1"
    artifacts.verify(target)


def test_a_target_with_other_files_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").write_text("x")
    with pytest.raises(BoomError, match="not an artifact"):
        publish(tmp_path / "model")
    assert (tmp_path / "model" / "precious").read_text() == "x"


def test_the_digest_covers_the_content_but_not_the_card():
    def of(**files):
        return record(files={k: artifacts.FileEntry(size=1, xxh3_128=v) for k, v in files.items()}).digest

    assert of(a="1") != of(a="2")
    with_card = record(files={"a": artifacts.FileEntry(size=1, xxh3_128="1"),
                              "README.md": artifacts.FileEntry(size=1, xxh3_128="9")})  # fmt: skip
    assert with_card.digest == of(a="1")

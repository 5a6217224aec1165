"""The command line: a user's mistake gives one message, an exit code, no trace, and nothing half-written."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml

from boom_ray import artifacts
from tests.conftest import recipe_values


def boom_ray(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "boom_ray.cli", *arguments]
    # Each command starts a Ray of its own; one CPU of it is enough.
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )


def assert_refused(run: subprocess.CompletedProcess, message: str) -> None:
    output = run.stdout + run.stderr
    assert run.returncode not in (0, -9) and "Traceback" not in output, output
    assert run.stderr.count("error:") + run.stderr.count("Error:") == 1 and message in output, output


@pytest.fixture
def recipe_file(tmp_path, minilm, corpus_files, beir):
    def write(**sections):
        values = recipe_values(minilm, corpus_files, beir, str(tmp_path / "runs")) | sections
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return write


def test_every_verb_explains_itself():
    run = boom_ray("--help")
    assert run.returncode == 0
    for verb in ("run", "train", "merge", "evaluate", "embed", "serve", "verify"):
        assert verb in run.stdout
        assert boom_ray(verb, "--help").returncode == 0


def test_a_typo_in_the_recipe(recipe_file, tmp_path):
    assert_refused(boom_ray("run", recipe_file(trian={})), "trian: unknown key; did you mean 'train'?")
    assert not (tmp_path / "runs").exists()


def test_a_missing_recipe_and_a_missing_model():
    assert_refused(boom_ray("run", "nowhere.yaml"), "nowhere.yaml: no such recipe")
    assert_refused(boom_ray("verify", "nowhere"), "not an artifact")


def test_a_cluster_that_is_not_there(recipe_file):
    silent = boom_ray("run", recipe_file(), RAY_ADDRESS="127.0.0.1:9")
    assert_refused(silent, "127.0.0.1:9 (RAY_ADDRESS): Ray does not answer")
    jobs = boom_ray("run", recipe_file(), RAY_ADDRESS="http://127.0.0.1:8265")
    assert_refused(jobs, "Submit this command as one")


def test_a_missing_data_file(recipe_file, tmp_path):
    data = {"tasks": [{"name": "t", "path": "nowhere.jsonl"}]}
    assert_refused(boom_ray("train", recipe_file(data=data)), "nowhere.jsonl: no data there")
    assert not os.path.exists(tmp_path / "runs" / "tiny" / "corpus")


def test_a_bad_line(recipe_file, tmp_path, corpus_files):
    shutil.copy(corpus_files["docstring-to-code"], tmp_path / "t.jsonl")
    with open(tmp_path / "t.jsonl", "a") as file:
        file.write("{bad\n")
    data = {"tasks": [{"name": "t", "path": "t.jsonl"}], "max_bad_fraction": 0.0}
    assert_refused(boom_ray("train", recipe_file(data=data)), "t.jsonl:4")
    assert not os.path.exists(tmp_path / "runs" / "tiny" / "corpus")


def test_a_truncated_shard(tmp_path, published_minilm):
    damaged = str(tmp_path / "damaged")
    shutil.copytree(published_minilm, damaged)
    os.truncate(os.path.join(damaged, "model.safetensors"), 10_000_000)
    assert_refused(boom_ray("verify", damaged), "model.safetensors: 10000000 bytes, recorded")
    out = tmp_path / "merged" / "out"
    assert_refused(boom_ray("merge", published_minilm, damaged, "--out", str(out)), "model.safetensors")
    assert os.listdir(tmp_path / "merged") == []


def test_weights_that_are_no_numbers_and_a_bag_that_is_not_there(recipe_file, published_minilm):
    assert_refused(
        boom_ray("merge", "a", "b", "--out", "c", "--weights", "heavy"), "allowed: equal, size, or numbers"
    )
    assert_refused(boom_ray("train", recipe_file(), "--bag", "9"), "the recipe has bags 1 to 2")


def test_verify_tells_what_it_checked(published_minilm):
    run = boom_ray("verify", published_minilm)
    record = artifacts.read_record(published_minilm)
    assert run.returncode == 0 and record.digest in run.stdout and "complete: model" in run.stdout

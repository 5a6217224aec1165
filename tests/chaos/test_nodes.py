"""Lost nodes: their work resumes on other nodes, and the work of other nodes is not affected."""

import itertools
import json
import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file

from boom_ray import artifacts
from boom_ray.model import directory
from tests import texts
from tests.conftest import recipe_values
from tests.train.test_faults import relative_difference


def logged(root: str, bag: str, key: str) -> list[Any]:
    """A value of every step in the metrics log of a bag."""
    with open(f"{root}/models/{bag}/metrics.jsonl", encoding="utf-8") as file:
        return [json.loads(line)[key] for line in file]


def run(*module: str, seconds: float = 550) -> str:
    """Output of a script that starts its own cluster."""
    done = subprocess.run(
        [sys.executable, "-m", *module],
        capture_output=True, text=True, timeout=seconds, env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_two_bags_are_published_although_one_of_two_nodes_is_lost(minilm, corpus_files, beir, tmp_path):
    values: dict[str, Any] = recipe_values(minilm, corpus_files, beir, str(tmp_path))
    values["bags"] = {"ratios": [90, 100]}
    values["evaluate"] = {}
    values["train"] |= {"epochs": 6}
    values["train"]["execution"] |= {"resources_per_worker": {"CPU": 1}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    root = f"{tmp_path}/tiny"
    output = run("tests.chaos.two_nodes", str(path))
    assert "REMOVED a node" in output and output.count("MODEL") == 2
    for bag in ("bag-1", "bag-2"):
        artifacts.verify(f"{root}/models/{bag}")
    one, other = logged(root, "bag-1", "time"), logged(root, "bag-2", "time")
    assert max(one[0], other[0]) < min(one[-1], other[-1]), "the bags overlapped in time"
    gaps = sorted(max(b - a for a, b in itertools.pairwise(times)) for times in (one, other))
    print(f"longest pause of the bag that stayed {gaps[0]:.1f} s, of the one that moved {gaps[1]:.1f} s")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_bag_goes_on_with_the_ranks_that_are_left_and_with_those_that_join(
    minilm, corpus_files, beir, tmp_path
):
    """Of one rank, of three with uneven shares and one again, of one and three, and with a notice."""
    values: dict[str, Any] = recipe_values(minilm, corpus_files, beir, str(tmp_path))
    values |= {"bags": {"ratios": [100]}, "evaluate": {}}
    values["train"] |= {"epochs": 100, "max_steps": 60}
    values["train"]["execution"] |= {"resources_per_worker": {"CPU": 1}, "max_failures": 0}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    output = run("tests.chaos.elastic_nodes", str(path), seconds=1700)
    expected = load_file(f"{tmp_path}/undisturbed/models/bag-1/model.safetensors")
    fingerprints = set()
    for name, ranks in {"undisturbed": [1], "loses": [3, 1], "joins": [1, 3], "preempted": [3, 1]}.items():
        root = f"{tmp_path}/{name}"
        fingerprints.add(artifacts.verify(f"{root}/models/bag-1").fingerprint)
        assert logged(root, "bag-1", "step") == list(range(1, 61)), "no step is lost or repeated"
        assert [number for number, _ in itertools.groupby(logged(root, "bag-1", "num_ranks"))] == ranks
        difference = relative_difference(load_file(f"{root}/models/bag-1/model.safetensors"), expected)
        print(f"{name}: relative weight difference {difference:.1e}")
        assert difference < 1e-6
    assert len(fingerprints) == 1
    [step] = re.findall(r"NOTICE \[(\d+)\]", output)
    resumed_at = logged(root, "bag-1", "num_ranks").index(1)
    assert int(step) <= resumed_at < int(step) + 20, "no step before the notice is repeated"


@pytest.mark.slow
def test_an_embedding_run_loses_no_row_with_a_lost_node(published_qwen3, tmp_path):
    pieces = [text for pair in texts.functions("email") for text in pair]
    rows = [f"{index} {pieces[index % len(pieces)]}" for index in range(12_000)]
    source = tmp_path / "in"
    source.mkdir()
    for part in range(4):
        ids = list(range(part, len(rows), 4))
        table = pa.table({"id": ids, "text": [rows[index] for index in ids]})
        pq.write_table(table, source / f"{part}.parquet")
    target = str(tmp_path / "out")
    output = run("tests.chaos.embed_nodes", published_qwen3, str(source), target)
    print(output.strip())
    assert "REMOVED a node" in output and "ROWS 12000" in output
    files = [name for name in artifacts.verify(target).files if name.endswith(".parquet")]
    table = pa.concat_tables(pq.read_table(os.path.join(target, name)) for name in files).sort_by("id")
    assert table["id"].to_pylist() == list(range(len(rows)))
    clean = directory.load_encoder(published_qwen3).encode(rows[:500])
    assert (np.stack(table["embedding"].to_numpy()[:500]) * clean).sum(1).min() >= 0.99999

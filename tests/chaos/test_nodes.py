"""Nodes that go: the bags they carried resume on others, and the other bags never notice."""

import itertools
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import yaml

from boom_ray import artifact
from tests.conftest import recipe_values


def moments(root: str, bag: str) -> list[float]:
    with open(f"{root}/models/{bag}/metrics.jsonl", encoding="utf-8") as file:
        return [json.loads(line)["time"] for line in file]


@pytest.mark.slow
def test_two_bags_on_two_nodes_end_published_although_one_node_goes(minilm, corpus_files, beir, tmp_path):
    values: dict[str, Any] = recipe_values(minilm, corpus_files, beir, str(tmp_path))
    values["bags"] = {"ratios": [90, 100]}
    values["evaluate"] = {}
    values["train"] |= {"epochs": 6}
    values["train"]["execution"] |= {"resources_per_worker": {"CPU": 1}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    root = f"{tmp_path}/tiny"
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.two_nodes", str(path)],
        capture_output=True, text=True, timeout=550, env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "REMOVED a node" in done.stdout and done.stdout.count("MODEL") == 2
    for bag in ("bag-1", "bag-2"):
        artifact.verify(f"{root}/models/{bag}")
    one, other = moments(root, "bag-1"), moments(root, "bag-2")
    assert max(one[0], other[0]) < min(one[-1], other[-1]), "the bags overlapped in time"
    gaps = sorted(max(b - a for a, b in itertools.pairwise(times)) for times in (one, other))
    print(f"longest pause of the bag that stayed {gaps[0]:.1f} s, of the one that moved {gaps[1]:.1f} s")

"""The cluster files without a cluster: Ray's validator, the shape of the RayJob, the sources of the image."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent
CONSTRAINTS = "cluster/constraints.txt"
#: What `pip install .` reads, and what jobs are started from.
PROJECT = {"pyproject.toml", "README.md", "LICENSE", "boom_ray", "jobs", CONSTRAINTS}
FILES = ["cluster.yaml", "cluster/Dockerfile", "cluster/kuberay/rayjob.yaml", "cluster/README.md"]


def pinned(package: str) -> str:
    versions = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / CONSTRAINTS).read_text(), re.MULTILINE))
    return versions[package]


@pytest.fixture
def launcher() -> dict[str, Any]:
    return prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


@pytest.fixture
def rayjob() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster/kuberay/rayjob.yaml").read_text())


@pytest.fixture
def pods(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.fixture
def copied() -> list[str]:
    """The sources of every COPY in the Dockerfile."""
    lines = (ROOT / "cluster/Dockerfile").read_text().splitlines()
    return [source for line in lines if line.startswith("COPY ") for source in shlex.split(line)[1:-1]]


def test_ray_accepts_the_cluster_and_keeps_work_off_its_head(launcher: dict[str, Any]) -> None:
    validate_config(launcher)
    types = launcher["available_node_types"]
    head = types.pop(launcher["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    for worker in types.values():
        assert (worker["min_workers"], worker["max_workers"]) == (0, launcher["max_workers"])
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert launcher["provider"]["cache_stopped_nodes"] is False


def test_every_started_node_authenticates(launcher: dict[str, Any]) -> None:
    assert launcher["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for role in ("head", "worker"):
        [start] = [command for command in launcher[f"{role}_start_ray_commands"] if "ray start" in command]
        assert start.startswith("export RAY_AUTH_MODE=token;")
        assert ("--dashboard-host=127.0.0.1" in start) == (role == "head")


def test_nodes_receive_and_install_the_project(launcher: dict[str, Any]) -> None:
    sources = {path for path in launcher["file_mounts"].values() if not path.startswith("~")}
    assert sources >= PROJECT
    assert [path for path in sorted(sources) if not (ROOT / path).exists()] == []
    assert all(launcher["file_mounts"][f"~/boom-ray/{path}"] == path for path in sources)
    installs = [
        command
        for command in launcher["setup_commands"]
        if "pip install" in command and f"--constraint {CONSTRAINTS}" in command
    ]
    assert len(installs) == 1 and installs[0].startswith("cd ~/boom-ray && ")


def test_rayjob_runs_a_mounted_recipe_and_ends(rayjob: dict[str, Any], pods: list[dict[str, Any]]) -> None:
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    spec = rayjob["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] == 2
    program, script, recipe, *options = shlex.split(spec["entrypoint"])
    assert program == "python"
    assert (ROOT / script).is_file()
    assert options[0] == "--storage" and options[1].startswith("s3://")
    mounts = {mount["mountPath"]: mount["name"] for mount in pods[0]["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pods[0]["volumes"]}
    assert "configMap" in volumes[mounts[os.path.dirname(recipe)]]


def test_rayjob_cluster_authenticates_and_scales(rayjob: dict[str, Any]) -> None:
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    [gpu] = cluster["workerGroupSpecs"]
    assert (gpu["minReplicas"], gpu["maxReplicas"]) == (0, 8)
    assert int(gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) >= 1


def test_every_pod_has_limits_shared_memory_and_credentials_by_reference(pods: list[dict[str, Any]]) -> None:
    for pod in pods:
        [container] = pod["containers"]
        assert container["image"] == pods[0]["containers"][0]["image"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert [set(source) for source in container["envFrom"]] == [{"secretRef"}]
        assert "env" not in container
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes.keys() == set(mounts.values())
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"


def test_image_holds_what_its_install_and_its_jobs_read(copied: list[str]) -> None:
    assert [path for path in copied if not (ROOT / path).exists()] == []
    assert set(copied) >= PROJECT
    dockerfile = (ROOT / "cluster/Dockerfile").read_text()
    assert dockerfile.count("pip install") == dockerfile.count(f"--constraint {CONSTRAINTS}")
    assert re.search(r"^USER [1-9]\d*$", dockerfile, re.MULTILINE), "the image must not run as root"


@pytest.mark.parametrize("path", FILES)
def test_no_secret_stands_in_a_file(path: str) -> None:
    text = (ROOT / path).read_text()
    assert re.findall(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\b[0-9a-f]{32,}\b|-----BEGIN", text) == []
    assert re.findall(r"(?i)(?:secret\w*|token|password)\"?[=:] *\"?[\w/+]{16,}", text) == []


@pytest.mark.parametrize("name", ["training", "serving"])
def test_dashboards_ask_for_metrics_that_exist(name):
    board = json.loads((ROOT / f"cluster/grafana/{name}.json").read_text())
    asked = {
        metric
        for panel in board["panels"]
        for target in panel["targets"]
        for metric in re.findall(r"ray_boom_ray_\w+", target["expr"])
    }
    code = "".join(path.read_text() for path in (ROOT / "boom_ray").rglob("*.py"))
    stems = {re.sub(r"^ray_boom_ray_(train|serve)_|_(bucket|total)$", "", metric) for metric in asked}
    assert (
        stems and [stem for stem in stems if f'"{stem}"' not in code and f"PREFIX}}{stem}" not in code] == []
    )
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])

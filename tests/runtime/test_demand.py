"""Waiting for capacity on a cluster without an autoscaler: with a deadline, and never on CPUs instead."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
import torch
from ray.util import placement_group_table

from boom_ray.errors import ClusterError, InputError
from boom_ray.runtime import capacity, demand, devices

pytestmark = pytest.mark.usefixtures("ray_cluster")


def groups(state: str) -> int:
    """Number of placement groups in a state."""
    return sum(one["state"] == state for one in placement_group_table().values())


def test_capacity_that_is_there_is_not_awaited():
    before = len(placement_group_table())
    assert demand.await_capacity({"CPU": 0.5}, 4, wanted=100) == 4
    assert len(placement_group_table()) == before


def test_a_wait_asks_by_placement_groups_says_so_and_ends_at_the_deadline(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "boom_ray.runtime.demand")
    monkeypatch.setattr(demand, "LOG_AFTER_SECONDS", 0.0)
    gpus = {"CPU": 1, "GPU": 1}
    message = r"after 1 s: required are 2 workers of \{'CPU': 1, 'GPU': 1\}, the cluster has \{'CPU': 2.0, "
    message += r"'GPU': 0\} on 1 nodes, enough for 0\. .*no autoscaler.* Add a GPU$"
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(demand.await_capacity, gpus, 2, timeout_s=1, remedy="Add a GPU")
        most = 0
        while not waiting.done():
            most = max(most, groups("PENDING"))
    with pytest.raises(ClusterError, match=message):
        waiting.result()
    assert most == 1 and groups("PENDING") == 0
    assert "of at most 1 s: capacity for 0 of 2 workers of {'CPU': 1, 'GPU': 1}" in caplog.text


def test_without_an_autoscaler_the_cluster_is_at_its_largest():
    assert capacity.potential({"CPU": 0.5}) == capacity.live({"CPU": 0.5}) == 4
    assert capacity.most_cpus() == ray.cluster_resources()["CPU"]


def test_the_device_is_that_of_the_cluster_or_as_asked_and_never_another():
    assert devices.resolve("auto") == ("cuda" if ray.cluster_resources().get("GPU") else "cpu")
    assert devices.resolve("cuda") == "cuda" and devices.resolve("cpu") == "cpu"
    with pytest.raises(InputError, match="'gpu': unknown; allowed: auto, cuda, cpu"):
        devices.resolve("gpu")
    devices.check("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ClusterError, match="device cuda was chosen"):
            devices.check("cuda")

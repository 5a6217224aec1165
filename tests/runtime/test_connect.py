"""Connecting to Ray fails early, with one error, where no cluster can answer."""

import pytest

from boom_ray.errors import ClusterError
from boom_ray.runtime import cluster
from boom_ray.runtime.cluster import _check_answers
from tests.object_store import free_ports


def test_an_address_that_does_not_answer_is_an_error(monkeypatch):
    monkeypatch.setattr(cluster, "SECONDS_TO_ANSWER", 0.1)
    [port] = free_ports(1)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ClusterError, match=rf"127\.0\.0\.1:{port} \(RAY_ADDRESS\)"):
        _check_answers(f"127.0.0.1:{port}")
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ClusterError, match=rf"127\.0\.0\.1:{port} \(the last cluster of this machine\)"):
        _check_answers(f"127.0.0.1:{port}")


def test_the_address_of_the_job_api_is_not_one_to_connect_to():
    with pytest.raises(ClusterError, match=r"http://127\.0\.0\.1:8265.*ray job submit"):
        _check_answers("http://127.0.0.1:8265")


@pytest.mark.parametrize("address", [None, "auto", "local", "ray://127.0.0.1:10001/x"])
def test_addresses_without_host_and_port_are_left_to_ray(address):
    _check_answers(address)

"""The private API of Ray Serve and the overridden method of uvicorn that the package relies on."""

import inspect

import pytest
import uvicorn
from ray import serve
from ray.serve._private.client import ServeControllerClient
from ray.serve.context import _get_global_client

from boom_ray.serve.ray_internals import proxy_host, with_version
from tests.serve.test_serve import free_port


@serve.deployment
class Deployed:
    """Any deployment."""


def test_a_deployment_can_have_a_version():
    deployment = with_version(Deployed, "abc", max_ongoing_requests=7)
    assert (deployment.version, deployment.max_ongoing_requests) == ("abc", 7)
    with pytest.raises(ValueError, match="version"):
        Deployed.options(version="abc")


def test_the_client_of_ray_serve_has_its_http_options():
    assert list(inspect.signature(_get_global_client).parameters) == ["raise_if_no_controller_running"]
    assert isinstance(inspect.getattr_static(ServeControllerClient, "http_config"), property)


@pytest.mark.usefixtures("ray_cluster")
def test_the_host_of_the_proxies_is_that_of_the_http_options():
    serve.start(http_options={"host": "127.0.0.2", "port": free_port()})
    try:
        assert proxy_host() == "127.0.0.2"
    finally:
        serve.shutdown()


def test_uvicorn_captures_signals_in_the_method_that_the_listener_overrides():
    assert "self.capture_signals()" in inspect.getsource(uvicorn.Server.serve)

"""All uses of private API of Ray Serve in this package; `tests/serve/test_ray_internals.py` checks each."""

from typing import Any

from ray.serve.context import _get_global_client
from ray.serve.deployment import Deployment


def proxy_host() -> str:
    """The address at which the proxies of the running Ray Serve listen.

    Application builders run when Ray Serve does, and Ray Serve has no public query for its HTTP options.

    Raises:
        ray.serve.exceptions.RayServeException: if Ray Serve does not run.
    """
    client = _get_global_client()
    assert client is not None, "raises by itself if there is no controller"
    return str(client.http_config.host)


def with_version(deployment: Deployment, version: str, **options: Any) -> Deployment:
    """A deployment with options and a version.

    Without a version, Ray Serve replaces the replicas of a deployment that is deployed again. With an equal
    version it keeps them and calls their `reconfigure`. The public `options` refuses a version.
    """
    return deployment.options(version=version, _internal=True, **options)

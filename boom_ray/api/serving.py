"""Serve models over HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from boom_ray.api import arguments
from boom_ray.api.arguments import ModelLike, PathLike
from boom_ray.runtime.devices import Device

if TYPE_CHECKING:
    from boom_ray.serve.serve_settings import ServeSettings


@dataclass(frozen=True)
class ServeHandle:
    """A running endpoint; as a context manager it is stopped at the end of the block.

    Attributes:
        url: Address of the endpoint; routes of OpenAI's API are below `/v1`.
        models: URIs of the served models.
    """

    url: str
    models: list[str]

    def stop(self) -> None:
        """End the endpoint, after the requests it has accepted."""
        from ray import serve as ray_serve

        ray_serve.shutdown()

    def __enter__(self) -> "ServeHandle":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def serve(
    models: ModelLike | Sequence[ModelLike],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    pass_tokens: int | None = None,
    min_replicas: int = 1,
    max_replicas: int = 1,
    device: Device = "auto",
    gpus_per_replica: float = 1.0,
    start_timeout_s: float = 600.0,
    blocking: bool = False,
) -> ServeHandle:
    """Serve models over HTTP, as the APIs of OpenAI and text-embeddings-inference do.

    If the cluster serves other versions of these models already, the endpoint switches to the new versions
    without a failed request, and keeps its address. Clients need the key in the environment variable
    BOOM_RAY_API_KEY, or one of those in the file named by BOOM_RAY_API_KEYS_FILE, if either is set.

    Args:
        models: One model or several; a run stands for its current version. The first answers requests that
            name none.
        host: Address to listen at; any but loopback needs a key.
        port: TCP port.
        pass_tokens: Tokens in one forward pass; by default as suits the device.
        min_replicas: Encoders of each model at least.
        max_replicas: Encoders of each model at most.
        device: Device of the encoders; `auto`: GPUs if the cluster has any, or its autoscaler may start some.
        gpus_per_replica: GPUs of each encoder on GPUs; encoders share a GPU below 1.
        start_timeout_s: Seconds to wait for the encoders of a model, for resources and until they are loaded.
        blocking: Return after Ctrl-C or SIGTERM, when the endpoint has ended.

    Raises:
        InputError: if a model cannot be loaded, the host needs a key, or the port is in use.
        NotFoundError: if a model does not exist.
        ConflictError: if the cluster serves something else.
        ClusterError: if encoders are not ready in time.

    Example:
        >>> with boom.serve("runs/quickstart", port=8000) as endpoint:
        ...     requests.post(f"{endpoint.url}/v1/embeddings", json={"input": "a text"})
    """
    from boom_ray.runtime import cluster
    from boom_ray.serve import address, app

    uris = arguments.model_uris(models)
    settings = _settings(pass_tokens, min_replicas, max_replicas, device, gpus_per_replica)
    cluster.connect(yielding=False)
    app.serve_models(uris, host, port, settings, blocking, start_timeout_s)
    return ServeHandle(address.url_of(host, port) if blocking else _current_url(host, port), uris)


def serve_config(
    models: ModelLike | Sequence[ModelLike],
    out: PathLike,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    pass_tokens: int | None = None,
    min_replicas: int = 1,
    max_replicas: int = 1,
    device: Device = "auto",
    gpus_per_replica: float = 1.0,
) -> str:
    """Write a configuration file for `serve deploy`, which serves the same as `serve` does.

    Args:
        out: The YAML file; the other arguments are those of `serve`.

    Returns:
        URI of the file.

    Raises:
        NotFoundError: if a model does not exist.

    Example:
        >>> boom.serve_config("runs/quickstart", "serve.yaml", host="0.0.0.0")
    """
    from boom_ray.serve import build

    settings = _settings(pass_tokens, min_replicas, max_replicas, device, gpus_per_replica)
    uri = arguments.path(out)
    build.write_config(arguments.model_uris(models), settings, host, port, uri)
    return uri


def _settings(
    pass_tokens: int | None,
    min_replicas: int,
    max_replicas: int,
    device: Device,
    gpus_per_replica: float,
) -> "ServeSettings":
    from boom_ray.serve.serve_settings import ServeSettings

    return arguments.settings(
        ServeSettings,
        pass_tokens=pass_tokens,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        device=device,
        gpus_per_replica=gpus_per_replica,
    )


def _current_url(host: str, port: int) -> str:
    """The URL of the running endpoint: one that switched versions kept its address."""
    from ray import serve as ray_serve

    from boom_ray.serve.address import url_of
    from boom_ray.serve.build import APPLICATION

    endpoint = ray_serve.get_app_handle(APPLICATION).get_endpoint.remote().result()
    return url_of(endpoint.host or host, endpoint.port or port)

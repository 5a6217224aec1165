"""Application builders for Ray Serve's config files, and the config file that `--config-out` writes.

Ray Serve imports `encoder` and `ingress` by the paths in the file, and validates the arguments there against
the pydantic models that annotate them.
"""

from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field
from ray.serve.config import ProxyLocation
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from boom_ray import storage
from boom_ray.errors import ConflictError
from boom_ray.model import directory
from boom_ray.runtime import capacity
from boom_ray.serve import address, guard
from boom_ray.serve.ingress import Endpoint, ingress_application
from boom_ray.serve.keys import read_keys
from boom_ray.serve.ray_internals import proxy_host
from boom_ray.serve.replica import encoder_application
from boom_ray.serve.serve_settings import ServeSettings
from boom_ray.serve.served_model import ServedModel

APPLICATION = "boom-ray"


class EncoderArguments(BaseModel):
    """Arguments of the application of one version of a model.

    Attributes:
        settings: Settings of the endpoint.
        model: URI of the model directory.
        num_models: Models of the endpoint, which share the CPUs.
    """

    model_config = ConfigDict(extra="forbid")

    settings: ServeSettings = ServeSettings()
    model: str
    num_models: int = Field(1, ge=1)


class IngressArguments(BaseModel):
    """Arguments of the application in front of the encoders.

    Attributes:
        settings: Settings of the endpoint.
        models: URIs of the model directories; the first answers requests that name no model.
    """

    model_config = ConfigDict(extra="forbid")

    settings: ServeSettings = ServeSettings()
    models: list[str] = Field(min_length=1)


def describe(models: list[str]) -> list[ServedModel]:
    """The identities of models, without loading their weights.

    Args:
        models: URIs of model directories.

    Raises:
        InputError: if one is not a model directory.
        ConflictError: if two have the same name.
    """
    found = []
    for uri in models:
        spec = directory.read_spec(storage.local_directory(uri))
        identity = directory.identify(uri)
        found.append(ServedModel(uri, identity.name, identity.version, identity.digest, spec.max_length))
    names = [model.name for model in found]
    if len(set(names)) < len(names):
        raise ConflictError(f"two models have the same name: {', '.join(names)}. Serve one version of each")
    return found


def encoder_of(served: ServedModel, settings: ServeSettings, num_models: int) -> Any:
    """The application of one version of a model, one of `num_models` that share the CPUs."""
    # Nodes that must be started are those of few replicas: the autoscaler fills one after another.
    cpus = capacity.live({"CPU": 1}) or capacity.most_cpus()
    threads = min(cpus // num_models // settings.max_replicas, capacity.most_cpus())
    return encoder_application(served, settings, threads=max(1, threads))


def encoder(args: EncoderArguments) -> Any:
    """Application builder: one version of a model."""
    (served,) = describe([args.model])
    return encoder_of(served, args.settings, args.num_models)


def ingress(args: IngressArguments) -> Any:
    """Application builder: the routes in front of the encoders, behind Ray Serve's proxies.

    Raises:
        InputError: if the proxies are reachable from other machines, and there is no key.
    """
    models, keys, host = describe(args.models), read_keys(), proxy_host()
    address.check_host(host, bool(keys))
    limits = args.settings.limits(models)
    return ingress_application(models, limits, Endpoint("", None), guard.digests(keys))


def write_config(models: list[str], settings: ServeSettings, host: str, port: int, path: str) -> None:
    """Write a config file for `serve deploy`, without keys: they come from the cluster's environment."""
    applications = [
        _application(served.application, None, encoder, EncoderArguments(
            settings=settings, model=served.uri, num_models=len(models)
        ))
        for served in describe(models)
    ]  # fmt: skip
    front = _application(APPLICATION, "/", ingress, IngressArguments(settings=settings, models=models))
    config = ServeDeploySchema(
        proxy_location=ProxyLocation.EveryNode,
        http_options=HTTPOptionsSchema(host=host, port=port),
        applications=[*applications, front],
    )
    content = config.model_dump(mode="json", exclude_unset=True)
    storage.write_bytes(storage.absolute(path), yaml.safe_dump(content, sort_keys=False).encode())


def _application(
    name: str, route_prefix: str | None, builder: Any, arguments: BaseModel
) -> ServeApplicationSchema:
    return ServeApplicationSchema(
        name=name,
        route_prefix=route_prefix,
        import_path=f"{builder.__module__}:{builder.__name__}",
        args=arguments.model_dump(mode="json"),
    )

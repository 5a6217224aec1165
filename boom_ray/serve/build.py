"""What an endpoint is made of, from the directories of its models and a few settings.

`encoder` and `ingress` are the application builders of the configuration that `boom-ray serve --config-out`
writes and `serve deploy` reads.
"""

import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

import ray
import yaml
from ray.serve.context import _get_global_client

from boom_ray import storage
from boom_ray.errors import BoomError
from boom_ray.model import directory
from boom_ray.serve import guard, listen
from boom_ray.serve.encoder import Served, encoder_application
from boom_ray.serve.ingress import Place, ingress_application
from boom_ray.serve.keys import read_keys
from boom_ray.serve.limits import Limits

APPLICATION = "boom-ray"
PASS_TOKENS = {"cpu": 2048, "cuda": 32768}


@dataclass(frozen=True)
class Settings:
    """What an operator decides beside the models.

    Attributes:
        pass_tokens: Tokens in one forward pass, from which all limits follow; by default as suits the device.
        min_replicas: Encoders of each model at least.
        max_replicas: And at most; between them Ray Serve follows the load.
        device: Where encoders compute; by default on GPUs if the cluster has some now.
    """

    pass_tokens: int | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    device: Literal["cpu", "cuda"] | None = None

    def limits(self, models: list[Served]) -> Limits:
        """The limits of an endpoint of these models, on the cluster this process is connected to."""
        longest = max(served.max_length for served in models)
        pass_tokens = self.pass_tokens or max(PASS_TOKENS[self.resolved_device()], longest)
        return Limits(pass_tokens, longest, self.max_replicas)

    def resolved_device(self) -> str:
        """Where encoders compute on the cluster this process is connected to."""
        return self.device or ("cuda" if ray.cluster_resources().get("GPU") else "cpu")


def describe(models: list[str]) -> list[Served]:
    """What is known of models without loading them.

    Raises:
        BoomError: if one is no model directory, or two have the same name.
    """
    found = []
    for uri in models:
        spec = directory.read_spec(storage.local_directory(uri))
        identity = directory.identify(uri)
        found.append(Served(uri, identity.name, identity.version, identity.digest, spec.max_length))
    names = [served.name for served in found]
    if len(set(names)) < len(names):
        raise BoomError(f"two models have the same name: {', '.join(names)}. Serve one version of each")
    return found


def encoder(args: dict[str, Any]) -> Any:
    """The application of one version of a model."""
    settings, (served,) = Settings(**args["settings"]), describe([args["model"]])
    share = ray.cluster_resources().get("CPU", 1) / args.get("num_models", 1) / settings.max_replicas
    threads = max(1, min(int(share), os.cpu_count() or 1))
    replicas = settings.min_replicas, settings.max_replicas
    device = settings.resolved_device()
    return encoder_application(served, settings.limits([served]), device, threads, replicas)


def ingress(args: dict[str, Any]) -> Any:
    """The application in front of the encoders, behind Ray Serve's proxies unless it is given a `place`.

    Raises:
        BoomError: if there is no key, and other machines reach where the cluster's proxies listen.
    """
    models, place = describe(args["models"]), args.get("place")
    if place is None:
        keys, client = read_keys(), _get_global_client()
        assert client is not None, "Ray Serve builds applications when it runs"
        listen.check_host(client.http_config.host, bool(keys))
        place = Place("", None, guard.digests(keys))
    return ingress_application(models, Settings(**args["settings"]).limits(models), place)


def write_config(models: list[str], settings: Settings, host: str, port: int, path: str) -> None:
    """Write what `serve deploy` takes to serve the same; keys come from the environment of the cluster."""
    module, arguments = "boom_ray.serve.build", {"settings": asdict(settings)}
    encoders = [
        {
            "name": served.application,
            "route_prefix": None,
            "import_path": f"{module}:encoder",
            "args": arguments | {"model": served.uri, "num_models": len(models)},
        }
        for served in describe(models)
    ]
    front = {
        "name": APPLICATION,
        "route_prefix": "/",
        "import_path": f"{module}:ingress",
        "args": arguments | {"models": models},
    }
    options = {"host": host, "port": port}
    content = {"proxy_location": "EveryNode", "http_options": options, "applications": [*encoders, front]}
    storage.write_bytes(storage.absolute(path), yaml.safe_dump(content, sort_keys=False).encode())

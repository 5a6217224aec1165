"""What an endpoint is made of, from the directories of its models and a few settings.

`encoder` and `ingress` are the application builders of the configuration that `boom-ray serve --config-out`
writes and `serve deploy` reads.
"""

import os
from dataclasses import asdict, dataclass
from typing import Any

import ray
import yaml

from boom_ray import storage
from boom_ray.errors import BoomError
from boom_ray.model import directory
from boom_ray.serve import guard
from boom_ray.serve.encoder import Served, encoder_application
from boom_ray.serve.ingress import Place, ingress_application
from boom_ray.serve.limits import Limits

APPLICATION = "boom-ray"
KEY_VARIABLE = "BOOM_RAY_API_KEY"
KEYS_FILE_VARIABLE = "BOOM_RAY_API_KEYS_FILE"
PASS_TOKENS = {"cpu": 2048, "cuda": 32768}


@dataclass(frozen=True)
class Settings:
    """What an operator decides beside the models.

    Attributes:
        pass_tokens: Tokens in one forward pass, from which all limits follow; by default as suits the device.
        min_replicas: Encoders of each model at least.
        max_replicas: And at most; between them Ray Serve follows the load.
    """

    pass_tokens: int | None = None
    min_replicas: int = 1
    max_replicas: int = 1

    def limits(self, models: list[Served]) -> Limits:
        """The limits of an endpoint of these models, on the cluster this process is connected to."""
        longest = max(served.max_length for served in models)
        return Limits(self.pass_tokens or max(PASS_TOKENS[device()], longest), longest, self.max_replicas)


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


def read_keys() -> list[str]:
    """The keys that clients may send.

    Raises:
        BoomError: if the file of keys cannot be read, or holds none.
    """
    path = os.environ.get(KEYS_FILE_VARIABLE)
    if not path:
        key = os.environ.get(KEY_VARIABLE)
        return [key] if key else []
    try:
        with open(path, encoding="utf-8") as file:
            keys = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BoomError(f"{KEYS_FILE_VARIABLE}: {path} cannot be read: {error}") from error
    if not keys:
        raise BoomError(f"{KEYS_FILE_VARIABLE}: {path} holds no key. Put one on each line")
    return keys


def device() -> str:
    """Where encoders compute on this cluster."""
    return "cuda" if ray.cluster_resources().get("GPU") else "cpu"


def encoder(args: dict[str, Any]) -> Any:
    """The application of one version of a model."""
    settings, (served,) = Settings(**args["settings"]), describe([args["model"]])
    share = ray.cluster_resources().get("CPU", 1) / args.get("num_models", 1) / settings.max_replicas
    threads = max(1, min(int(share), os.cpu_count() or 1))
    replicas = settings.min_replicas, settings.max_replicas
    return encoder_application(served, settings.limits([served]), device(), threads, replicas)


def ingress(args: dict[str, Any]) -> Any:
    """The application in front of the encoders, behind Ray Serve's proxies unless it is given a `place`."""
    models = describe(args["models"])
    place = args.get("place") or Place("", None, guard.digests(read_keys()))
    return ingress_application(models, Settings(**args["settings"]).limits(models), place)


def write_config(models: list[str], settings: Settings, path: str) -> None:
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
    content = yaml.safe_dump({"applications": [*encoders, front]}, sort_keys=False)
    storage.write_bytes(storage.absolute(path), content.encode())

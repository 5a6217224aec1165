"""Start an endpoint, change the versions it serves, and end it.

Each version of a model is a Ray Serve application of its own, and so is the ingress in front of them. A new
version is started next to the old one. Once it is ready, the ingress switches to it, and then the old one
ends.
"""

import logging
from typing import Any

from ray import serve

from boom_ray.errors import ClusterError, ConflictError, InputError
from boom_ray.serve import address, build, guard
from boom_ray.serve.build import APPLICATION
from boom_ray.serve.ingress import NUM_CPUS, Endpoint, ingress_application
from boom_ray.serve.keys import read_keys
from boom_ray.serve.readiness import log_ready, wait_for_signal
from boom_ray.serve.replica import DEPLOYMENT
from boom_ray.serve.serve_settings import ServeSettings
from boom_ray.serve.served_model import ServedModel
from boom_ray.serve.start import start

ANSWER_SECONDS = 60
logger = logging.getLogger(__name__)


def serve_models(
    models: list[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: ServeSettings | None = None,
    blocking: bool = True,
    start_timeout_s: float = 600.0,
) -> None:
    """Serve models over HTTP, on the Ray cluster this process is connected to.

    If the cluster already has an endpoint of boom-ray, it switches to these models: a new version is started
    and checked next to the served ones, and takes over without a failed request. `host` and `port` are then
    ignored.

    Clients must send one of the keys in the file that BOOM_RAY_API_KEYS_FILE names, one on a line, or the key
    in BOOM_RAY_API_KEY, if either is set.

    Args:
        models: URIs of model directories; the first answers requests that name no model.
        host: Address to listen at; any but loopback needs a key.
        port: TCP port.
        settings: Replicas, device and size of a forward pass.
        blocking: Return after Ctrl-C or SIGTERM, when everything is shut down. Otherwise return when the
            endpoint is ready; `ray.serve.shutdown()` ends it.
        start_timeout_s: Seconds to wait for the encoders of a model, for resources and until they are loaded.

    Raises:
        InputError: if a model cannot be loaded, the host needs a key, or the port is in use.
        NotFoundError: if a model does not exist.
        ConflictError: if the cluster serves another application, or a model that would end.
        ClusterError: if the encoders of a model are not ready in time.
    """
    settings, keys = settings or ServeSettings(), read_keys()
    running = serve.status().applications
    if APPLICATION in running:
        return switch(build.describe(models), settings, keys, start_timeout_s)
    if running:
        raise ConflictError(
            f"this Ray cluster already serves {', '.join(sorted(running))}. End it with `serve shutdown`"
        )
    address.check_host(host, bool(keys))
    # A port that is in use should fail here, at once, and not in a replica after the models are loaded.
    address.bind(host, port, shared=False).close()
    wanted = build.describe(models)
    try:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled")
        for served in wanted:
            _start(served, settings, len(wanted), start_timeout_s)
        _route(wanted, settings, Endpoint(host, port), guard.digests(keys), start_timeout_s)
    except BaseException:
        serve.shutdown()
        raise
    log_ready(wanted, host, port, bool(keys))
    if blocking:
        wait_for_signal()
        serve.shutdown()


def switch(
    wanted: list[ServedModel], settings: ServeSettings, keys: list[str], start_timeout_s: float
) -> None:
    """Start new versions, let the ingress switch to them, and end the replaced ones.

    The address of the endpoint stays. Its keys stay too, unless `keys` contains any.

    Raises:
        ConflictError: if a served model is not among `wanted`.
        InputError: if a new version does not start. Nothing changes then.
        ClusterError: if it does not start in time, or the endpoint does not answer.
    """
    ingress = serve.get_app_handle(APPLICATION)
    missing = set(_answer(ingress.get_names)) - {served.name for served in wanted}
    if missing:
        raise ConflictError(
            f"this cluster serves {', '.join(sorted(missing))}, which is not among the requested models. "
            "Name it as well, or end everything with `serve shutdown`"
        )
    before = {name for name in serve.status().applications if name != APPLICATION}
    new = [served for served in wanted if served.application not in before]
    try:
        for served in new:
            _start(served, settings, len(wanted), start_timeout_s)
    except BaseException:
        for served in new:
            serve.delete(served.application)
        raise
    endpoint: Endpoint = _answer(ingress.get_endpoint)
    key_digests = guard.digests(keys) if keys else _answer(ingress.get_key_digests)
    _route(wanted, settings, endpoint, key_digests, start_timeout_s)
    for name in sorted(before - {served.application for served in wanted}):
        serve.delete(name)  # its replicas first answer what they have accepted
        logger.info("ended %s", name)
    for served in wanted:
        logger.info("serving %s %s", served.name, served.version)


def _answer(method: Any) -> Any:
    """What the ingress returns."""
    try:
        return method.remote().result(timeout_s=ANSWER_SECONDS)
    except TimeoutError:
        raise ClusterError(
            f"the running endpoint does not answer within {ANSWER_SECONDS} s. See the logs of Ray Serve, or "
            "end it with `serve shutdown`"
        ) from None


def _start(served: ServedModel, settings: ServeSettings, num_models: int, timeout_s: float) -> None:
    """Start the encoders of a version, and return when they are ready."""
    application = build.encoder_of(served, settings, num_models)
    replica, num_replicas = settings.encoder_resources(), settings.min_replicas
    try:
        start(application, served.application, None, replica, num_replicas, timeout_s)
    except RuntimeError as error:
        raise InputError(f"{served.uri}: cannot be served: {_constructor_error(served)}") from error


def _constructor_error(served: ServedModel) -> str:
    """The last line of the exception in the replica's constructor; Ray Serve keeps its traceback as text."""
    message = serve.status().applications[served.application].deployments[DEPLOYMENT].message
    line = message.strip().splitlines()[-1]
    return line.partition(": ")[2] if line.startswith("boom_ray.errors.") else line


def _route(
    wanted: list[ServedModel],
    settings: ServeSettings,
    endpoint: Endpoint,
    key_digests: tuple[bytes, ...],
    timeout_s: float,
) -> None:
    """Let the ingress serve these versions; its replicas and the requests they hold stay."""
    application = ingress_application(wanted, settings.limits(wanted), endpoint, key_digests)
    start(application, APPLICATION, "/", {"CPU": NUM_CPUS}, 1, timeout_s)

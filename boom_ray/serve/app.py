"""Starting an endpoint, changing the versions it serves, and ending it.

Each version of a model is a Ray Serve application of its own, and so is the ingress in front of them. A new
version is started beside the old one; only when it is up is the ingress told, and then the old one ends.
"""

import logging
from dataclasses import asdict, replace
from typing import Any

from ray import serve

from boom_ray.errors import BoomError
from boom_ray.runtime.console import console
from boom_ray.serve import build, guard, listen
from boom_ray.serve.build import APPLICATION, Settings
from boom_ray.serve.encoder import DEPLOYMENT, Served
from boom_ray.serve.ingress import Place
from boom_ray.serve.keys import read_keys
from boom_ray.serve.listener import bind


def serve_models(
    models: list[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: Settings | None = None,
    blocking: bool = True,
) -> None:
    """Serve models over HTTP, on the Ray cluster this process is connected to.

    Where the cluster serves models already, its endpoint goes on with these: a version that is new is
    started and checked beside those that are served, and takes their place without a request failing.

    Clients must send one of the keys in the file that BOOM_RAY_API_KEYS_FILE names, one on a line, or the key
    in BOOM_RAY_API_KEY, if either is set.

    Args:
        models: URIs of model directories; the first answers requests that name none.
        host: Address to listen at; any but loopback needs a key.
        port: TCP port.
        blocking: Return after Ctrl-C or SIGTERM, when everything is shut down. Otherwise return when the
            endpoint is ready, and leave it to the caller to end it with `ray.serve.shutdown()`.

    Raises:
        BoomError: if there is no such model, it cannot be loaded, the host needs a key, the port is taken,
            or the cluster serves something else.
    """
    settings, keys = settings or Settings(), read_keys()
    running = serve.status().applications
    if APPLICATION in running:
        return switch(build.describe(models), settings, keys)
    if running:
        raise BoomError("this Ray cluster runs Ray Serve already; end that first with `serve shutdown`")
    listen.check_host(host, bool(keys))
    bind(host, port, shared=False).close()
    wanted = build.describe(models)
    try:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled")
        for served in wanted:
            _start(served, settings, len(wanted))
        _tell(wanted, settings, Place(host, port, guard.digests(keys)))
    except BaseException:
        serve.shutdown()
        raise
    listen.print_ready(wanted, host, port, bool(keys))
    if blocking:
        listen.wait_for_signal()
        serve.shutdown()


def switch(wanted: list[Served], settings: Settings, keys: list[str]) -> None:
    """Start what is not yet served, let the ingress change over, and end what is served no more.

    The endpoint stays where it is, and keeps its keys unless others are given.

    Raises:
        BoomError: if that would end a model, or a new version does not start; then everything is as it was.
    """
    before = {name for name in serve.status().applications if name != APPLICATION}
    lost = {Served.name_in(name) for name in before} - {served.name for served in wanted}
    if lost:
        raise BoomError(
            f"this cluster serves {', '.join(sorted(lost))}, which is not among the models given. "
            "Give it too, or end everything with `serve shutdown`"
        )
    new = [served for served in wanted if served.application not in before]
    try:
        for served in new:
            _start(served, settings, len(wanted))
    except BoomError:
        for served in new:
            serve.delete(served.application)
        raise
    place: Place = serve.get_app_handle(APPLICATION).where.remote().result()
    _tell(wanted, settings, replace(place, key_digests=guard.digests(keys)) if keys else place)
    for name in sorted(before - {served.application for served in wanted}):
        serve.delete(name)  # it answers first what it has accepted
        console.print(f"ended {name}", markup=False)
    for served in wanted:
        console.print(f"serving {served.name} {served.version}", markup=False)


def _start(served: Served, settings: Settings, num_models: int) -> None:
    args: dict[str, Any] = {"settings": asdict(settings), "model": served.uri, "num_models": num_models}
    try:
        serve.run(build.encoder(args), name=served.application, route_prefix=None)
    except RuntimeError as error:
        raise BoomError(f"{served.uri}: cannot be served: {_why_it_failed(served)}") from error


def _why_it_failed(served: Served) -> str:
    """The last line of what the replica's constructor raised."""
    message = serve.status().applications[served.application].deployments[DEPLOYMENT].message
    return message.strip().splitlines()[-1].removeprefix("boom_ray.errors.BoomError: ")


def _tell(wanted: list[Served], settings: Settings, place: Place) -> None:
    """Let the ingress serve these versions; its replicas stay, and so do the requests they hold."""
    args = {"settings": asdict(settings), "models": [served.uri for served in wanted], "place": place}
    serve.run(build.ingress(args), name=APPLICATION, route_prefix="/")

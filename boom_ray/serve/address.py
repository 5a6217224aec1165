"""The address of an endpoint: who can reach it, and its socket."""

import ipaddress
import socket

from boom_ray.errors import InputError
from boom_ray.serve.keys import KEY_VARIABLE


def check_host(host: str, has_key: bool) -> None:
    """Refuse an address that other machines reach, unless there is a key.

    Raises:
        InputError: if `host` is not loopback and there is no key.
    """
    if has_key or host == "localhost":
        return
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:  # a name, which may resolve to any address
        pass
    raise InputError(
        f"host {host} is reachable from other machines, and there is no key. Set {KEY_VARIABLE} to the key "
        "that clients must send, or serve at 127.0.0.1"
    )


def url_of(host: str, port: int) -> str:
    """The URL at which clients on this machine reach an address."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def bind(host: str, port: int, shared: bool) -> socket.socket:
    """A TCP socket bound to an address.

    Args:
        shared: Whether other sockets that are shared may bind the same address.

    Raises:
        InputError: if the address does not exist or is in use.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        bound.bind(address)
        return bound
    except (OSError, OverflowError) as error:
        raise InputError(
            f"cannot listen at {host}, port {port}: {error}. Use another port or host"
        ) from error

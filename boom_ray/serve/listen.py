"""Where an endpoint listens, what it says when it does, and until when it stays."""

import ipaddress
import signal
import threading

from boom_ray.errors import BoomError
from boom_ray.runtime.console import console
from boom_ray.serve.encoder import Served
from boom_ray.serve.keys import KEY_VARIABLE


def check_host(host: str, has_key: bool) -> None:
    if has_key or host == "localhost":
        return
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:  # a name, which may resolve to anything
        pass
    raise BoomError(
        f"host {host} lets other machines in, and there is no key. Set {KEY_VARIABLE} to the key that "
        "clients must send, or serve at 127.0.0.1"
    )


def print_ready(wanted: list[Served], host: str, port: int, has_key: bool) -> None:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
    key = f'-H "Authorization: Bearer ${KEY_VARIABLE}" ' if has_key else ""
    names = ", ".join(f"{served.name} {served.version}" for served in wanted)
    api_key = f'os.environ["{KEY_VARIABLE}"]' if has_key else '"none"'
    for line in (
        f"serving {names} at {url}  (its API: {url}/docs)",
        f"  curl {url}/v1/embeddings -H 'Content-Type: application/json' {key}-d '{{\"input\": \"a text\"}}'",
        f'  openai.OpenAI(base_url="{url}/v1", api_key={api_key})'
        f'.embeddings.create(model="{wanted[0].name}", input=["a text"])',
    ):
        console.print(line, markup=False)


def wait_for_signal() -> None:
    """Return upon Ctrl-C or SIGTERM."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)

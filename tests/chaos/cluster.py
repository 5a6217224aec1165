"""A Ray cluster of four nodes on one machine, with token authentication: `python -m tests.chaos.cluster up`.

    python -m tests.chaos.cluster up        # as root on Linux; prints what to export
    ray job submit --working-dir . -- python jobs/run.py recipe.yaml --storage /run/boom-ray-chaos/shared
    python -m tests.chaos.cluster down

Each node behaves like a machine: a network namespace on a bridge, with its own address, processes, host name
and small disk. Its supervisor restarts it when it ends, as systemd or Kubernetes would. All files are in one
directory; `down` removes everything.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

STATE = "/run/boom-ray-chaos"
TOKEN = f"{STATE}/token"
BRIDGE, NETWORK, PREFIX = "boom-ray", "10.213.77", 24
OUTSIDE = f"{NETWORK}.254"  # the address of this machine for the nodes
DISK_BYTES = 256 << 20
NUM_WORKERS = 3

# Runs as the first process of the node's process namespace, so the whole node ends with it.
START = """
hostname {name}
mount --bind {state}/hosts /etc/hosts
ulimit -c 0
export TMPDIR={disk}/tmp XDG_CACHE_HOME={disk}/cache BAD_RUNTIME_ENV_CACHE_TTL_SECONDS=10
mkdir -p $TMPDIR
exec {ray} start --block --disable-usage-stats --node-ip-address={address} --temp-dir={disk}/ray \\
    --object-store-memory=80000000 {role}
"""

# `--kill-child` ends the node with its supervisor.
SUPERVISE = """
while true; do
    ip netns exec {name} unshare --uts --mount --pid --fork --kill-child --mount-proc bash {state}/{name}.sh
    echo "{name} ended: $?"
    sleep 1
done
"""


@dataclass(frozen=True)
class Node:
    """A node; number 0 is the head."""

    number: int

    @property
    def name(self) -> str:
        """Name of the host, the network namespace, and the device on the bridge."""
        return f"boom-{self.number}"

    @property
    def address(self) -> str:
        """IP address."""
        return f"{NETWORK}.{self.number + 1}"

    @property
    def disk(self) -> str:
        """Its own file system, with the temporary directory, the cache and Ray's session."""
        return f"{STATE}/{self.name}"

    @property
    def role(self) -> str:
        """Arguments of `ray start` for the head or a worker."""
        if self.number:
            return f"--address={HEAD.address}:6379 --num-cpus=1"
        return "--head --port=6379 --num-cpus=0 --dashboard-host=0.0.0.0 --dashboard-port=8265"

    def processes(self) -> list[psutil.Process]:
        """All processes in its network namespace."""
        space = os.stat(f"/run/netns/{self.name}").st_ino
        return [process for process in psutil.process_iter() if _network_of(process) == space]


HEAD, *WORKERS = NODES = [Node(number) for number in range(NUM_WORKERS + 1)]
DASHBOARD = f"http://{HEAD.address}:8265"


def _network_of(process: psutil.Process) -> int | None:
    try:
        return os.stat(f"/proc/{process.pid}/ns/net").st_ino
    except OSError:  # it has ended
        return None


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True)


def create_network() -> None:
    """Remove an earlier cluster, and create a bridge with this machine at `OUTSIDE`."""
    down()
    os.makedirs(f"{STATE}/shared", mode=0o700)
    with open(os.open(TOKEN, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    with open(f"{STATE}/hosts", "w") as file:
        file.write("127.0.0.1 localhost\n" + "".join(f"{node.address} {node.name}\n" for node in NODES))
    _run(f"ip link add {BRIDGE} type bridge")
    _run(f"ip address add {OUTSIDE}/{PREFIX} dev {BRIDGE}")
    _run(f"ip link set {BRIDGE} up")
    for node in NODES:
        name = node.name
        os.makedirs(node.disk)
        _run(f"mount -t tmpfs -o size={DISK_BYTES} {name} {node.disk}")
        _run(f"ip netns add {name}")
        _run(f"ip link add {name} type veth peer name eth0 netns {name}")
        _run(f"ip -n {name} address add {node.address}/{PREFIX} dev eth0")
        for end in (f"-n {name} link set eth0", f"-n {name} link set lo", f"link set {name}"):
            _run(f"ip {end} up")
        join(node)


def join(node: Node) -> None:
    """Connect a node to the others."""
    _run(f"ip link set {node.name} master {BRIDGE}")


def cut_off(node: Node) -> None:
    """Drop every packet from and to a node, like an unplugged cable."""
    _run(f"ip link set {node.name} nomaster")


def start(environment: dict[str, str]) -> None:
    """Start a supervisor for every node, which survives this process, and wait for the cluster.

    Args:
        environment: Variables for all nodes, such as credentials.
    """
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "HF_HUB_OFFLINE") if name in os.environ}
    ray = os.path.join(os.path.dirname(sys.executable), "ray")
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    for node in NODES:
        values = {"state": STATE, "name": node.name, "address": node.address, "disk": node.disk}
        with open(f"{STATE}/{node.name}.sh", "w") as file:
            file.write(START.format(**values, ray=ray, role=node.role))
        with open(f"{STATE}/{node.name}.log", "w") as log:
            supervisor = subprocess.Popen(
                ["bash", "-c", SUPERVISE.format(**values)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, cwd="/", env={**kept, "PATH": path, **client(), **environment},
            )  # fmt: skip
        with open(f"{STATE}/{node.name}.pid", "w") as file:
            file.write(str(supervisor.pid))
    await_nodes(len(NODES))


def client() -> dict[str, str]:
    """Environment variables of clients of the cluster, and of its nodes."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": TOKEN}


def await_nodes(count: int, seconds: float = 180) -> None:
    """Wait until `count` nodes are alive.

    Raises:
        TimeoutError: if they are not after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while num_alive() < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{num_alive()} of {count} nodes are up; see {STATE}/*.log")
        time.sleep(1)


def num_alive() -> int:
    """Number of nodes that the head considers alive; 0 without a head."""
    try:
        nodes = get("/nodes?view=summary")["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)
    except (OSError, ValueError, KeyError):
        return 0


def get(path: str) -> dict[str, Any]:
    """GET from the head's API, with the token.

    Raises:
        OSError: without a successful response; `urllib.error.HTTPError` has the status.
    """
    with open(TOKEN) as file:
        headers = {"Authorization": f"Bearer {file.read()}"}
    request = urllib.request.Request(DASHBOARD + path, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def down() -> None:
    """Remove the cluster, also if its start was interrupted."""
    for node in NODES:
        _attempt(lambda node=node: _end_supervisor(node))
        _attempt(lambda node=node: [process.kill() for process in node.processes()])
        for command in ("ip link delete {name}", "ip netns delete {name}", "umount -l {disk}"):
            _undo(command.format(name=node.name, disk=node.disk))
    _undo(f"ip link delete {BRIDGE}")
    shutil.rmtree(STATE, ignore_errors=True)


def _end_supervisor(node: Node) -> None:
    with open(f"{STATE}/{node.name}.pid") as file:
        process = psutil.Process(int(file.read()))
    if f"{STATE}/{node.name}.sh" in process.cmdline()[-1]:
        os.killpg(process.pid, signal.SIGKILL)


def _undo(command: str) -> None:
    subprocess.run(command.split(), stderr=subprocess.DEVNULL)  # it may not exist


def _attempt(act: Callable[[], object]) -> None:
    try:
        act()
    except (OSError, psutil.Error):  # it does not exist, or has ended
        return


def main() -> None:
    """Run `up` or `down`."""
    if sys.argv[1:] == ["down"]:
        return down()
    if sys.argv[1:] != ["up"]:
        sys.exit(__doc__)
    try:
        create_network()
        start({name: value for name, value in os.environ.items() if name.startswith("AWS_")})
    except BaseException:
        down()
        raise
    print(f"export RAY_ADDRESS={DASHBOARD} " + " ".join(f"{key}={value}" for key, value in client().items()))


if __name__ == "__main__":
    main()

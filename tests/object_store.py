"""A real S3 server on loopback: OpenStack Swift with its S3 API, from PyPI wheels, without root.

The server has its own environment (`pip install swift==2.38.3`), which `tests/run.sh` creates. The variable
`BOOM_RAY_SWIFT_ENV` contains its path.
"""

import os
import secrets
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "test:tester", "kept-out-of-logs-and-records"
SERVICES = ("account", "container", "object")

RINGS = """
import sys
from swift.common.ring import RingBuilder
for kind, port in zip(("account", "container", "object"), sys.argv[2:]):
    builder = RingBuilder(4, 1, 0)
    builder.add_dev(dict(id=0, region=1, zone=1, ip="127.0.0.1", port=int(port), replication_ip="127.0.0.1",
                         replication_port=int(port), device="d1", weight=1.0, meta=""))
    builder.rebalance()
    builder.get_ring().save(f"{sys.argv[1]}/{kind}.ring.gz")
"""

# Without this, Swift logs to syslog, and opens a public UDP port if /dev/log does not exist.
NO_SYSLOG = """
from logging.handlers import SysLogHandler
def hook(conf, name, to_console, route, fmt, logger, adapted):
    for handler in list(logger.handlers):
        if isinstance(handler, SysLogHandler):
            logger.removeHandler(handler)
            handler.close()
"""

# With one proxy process a dictionary can replace memcached.
CACHE = """
import json
class Cache(dict):
    def get(self, key, *a, **k): return json.loads(dict.get(self, key, "null"))
    def set(self, key, value, *a, **k): self[key] = json.dumps(value)
    def delete(self, key, *a, **k): self.pop(key, None)
    def incr(self, key, delta=1, *a, **k):
        self.set(key, max(0, int(self.get(key) or 0) + int(delta)))
        return self.get(key)
def factory(global_conf, **conf):
    cache = Cache()
    def make(app):
        def call(environ, start):
            environ["swift.cache"] = cache
            return app(environ, start)
        return call
    return make
"""

# Swift checks whether an object exists and writes it in two steps, S3 in one, so that one of several
# conditional writes succeeds. Here they wait for each other.
ONE_AT_A_TIME = """
from eventlet.semaphore import Semaphore
def factory(global_conf, **conf):
    conditional = Semaphore()
    def make(app):
        def call(environ, start):
            if "HTTP_IF_NONE_MATCH" not in environ:
                return app(environ, start)
            with conditional:
                return list(app(environ, start))
        return call
    return make
"""

FILTERS = "catch_errors gatekeeper healthcheck oneatatime cache listing_formats bulk s3api tempauth copy slo"

COMMON = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {etc}
devices = {root}/data
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
log_custom_handlers = nosyslog.hook
"""

PROXY = """[pipeline:main]
pipeline = {filters} proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = kept-out-of-logs-and-records .admin
[filter:cache]
paste.filter_factory = localcache:factory
[filter:oneatatime]
paste.filter_factory = oneatatime:factory
[filter:slo]
use = egg:swift#slo
rate_limit_under_size = 0
[filter:listing_formats]
use = egg:swift#listing_formats
"""


def free_ports(count: int) -> list[int]:
    """Free ports of the loopback interface."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _configure(environment: str, root: str) -> tuple[str, int]:
    etc = os.path.join(root, "etc")
    os.makedirs(etc)
    os.makedirs(os.path.join(root, "data", "d1"))
    *ports, proxy = free_ports(4)
    python = os.path.join(environment, "bin", "python")
    subprocess.run([python, "-W", "ignore", "-c", RINGS, etc, *map(str, ports)], check=True)
    _write(f"{etc}/nosyslog.py", NO_SYSLOG)
    _write(f"{etc}/localcache.py", CACHE)
    _write(f"{etc}/oneatatime.py", ONE_AT_A_TIME)
    hashes = [f"swift_hash_path_{part} = {secrets.token_hex(8)}" for part in ("prefix", "suffix")]
    policy = ["[storage-policy:0]", "name = p0", "default = yes"]
    _write(f"{etc}/swift.conf", "\n".join(["[swift-hash]", *hashes, *policy]))
    user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
    for kind, port in zip(SERVICES, ports, strict=True):
        common = COMMON.format(port=port, user=user, etc=etc, root=root)
        app = f"[pipeline:main]\npipeline = {kind}-server\n[app:{kind}-server]\nuse = egg:swift#{kind}\n"
        _write(f"{etc}/{kind}.conf", common + app)
    plain = "".join(
        f"[filter:{name}]\nuse = egg:swift#{name}\n"
        for name in ("catch_errors", "gatekeeper", "healthcheck", "bulk", "copy", "dlo")
    )
    common = COMMON.format(port=proxy, user=user, etc=etc, root=root)
    _write(f"{etc}/proxy.conf", common + PROXY.format(filters=FILTERS) + plain)
    return etc, proxy


def _await_ready(url: str, processes: list[subprocess.Popen], root: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        try:
            if urllib.request.urlopen(f"{url}/healthcheck", timeout=5).read() == b"OK":
                return
        except OSError:
            time.sleep(0.1)
    logs = "".join(Path(root, f"{kind}.log").read_text()[-500:] for kind in (*SERVICES, "proxy"))
    raise RuntimeError(f"the S3 server did not start:\n{logs}")


@contextmanager
def s3_server(environment: str, root: str) -> Iterator[dict[str, str]]:
    """Run a server with its data below `root` until the block ends.

    Args:
        environment: A virtual environment with `swift`.

    Yields:
        The environment variables for clients of AWS S3.
    """
    etc, port = _configure(environment, root)
    variables = {**os.environ, "PYTHONPATH": etc, "PYTHONWARNINGS": "ignore"}
    processes = []
    for kind in (*SERVICES, "proxy"):
        command = [os.path.join(environment, "bin", f"swift-{kind}-server"), f"{etc}/{kind}.conf", "-v"]
        with open(os.path.join(root, f"{kind}.log"), "w") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=variables))
    url = f"http://127.0.0.1:{port}"
    try:
        _await_ready(url, processes, root)
        yield {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": url,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)

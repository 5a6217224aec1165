"""A model of 600 MB from an object store 30 ms away, for one process and for the eight of a node.

    python tests/benchmarks/storage.py [--mib 600] [--processes 8] [--milliseconds 30]

The store is OpenStack Swift on this machine, behind a proxy that delays every byte. The peer is
`pyarrow.fs.copy_files` as it is, in every process: what `boom_ray.storage.local_directory` did once.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
import pyarrow.fs

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)
REQUEST = re.compile(rb"(?:GET|HEAD|PUT|POST) \S+ HTTP/1.1")
URI = "s3://models/model"
PEER = f"""
import os, sys, pyarrow.fs
os.mkdir(sys.argv[1])
files, path = pyarrow.fs.FileSystem.from_uri({URI!r})
pyarrow.fs.copy_files(path, sys.argv[1], source_filesystem=files)
"""
OURS = f"""
from boom_ray import storage
storage.local_directory({URI!r})
"""


class DelayingProxy:
    """Forwards bytes to a server, each so many seconds later; counts the requests."""

    def __init__(self, port: int, seconds: float) -> None:
        self.upstream, self.seconds, self.requests = port, seconds, 0
        self.loop, self.port = asyncio.new_event_loop(), 0
        started = threading.Event()
        threading.Thread(target=self._run, args=(started,), daemon=True).start()
        started.wait()

    def _run(self, started: threading.Event) -> None:
        server = self.loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self.loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self.upstream)
        await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(due - self.loop.time())
                if not data:
                    return writer.close()
                writer.write(data)
                await writer.drain()

        delivery = asyncio.create_task(deliver())
        data = b"-"
        while data:
            try:
                data = await reader.read(1 << 18)
            except OSError:
                data = b""
            self.requests += bool(REQUEST.match(data))
            waiting.put_nowait((self.loop.time() + self.seconds, data))
        await asyncio.gather(delivery, return_exceptions=True)


@contextmanager
def store(mebibytes: int, milliseconds: float) -> Iterator[DelayingProxy]:
    """A store with a model, behind a delay; the environment of this process names it."""
    from tests.object_store import s3_server

    with (
        tempfile.TemporaryDirectory() as root,
        s3_server(os.environ["BOOM_RAY_SWIFT_ENV"], root) as variables,
    ):
        os.environ |= variables
        files = pyarrow.fs.S3FileSystem(
            endpoint_override=variables["AWS_ENDPOINT_URL"], allow_bucket_creation=True
        )
        files.create_dir("models")
        with files.open_output_stream("models/model/model.safetensors") as file:
            for _ in range(mebibytes):
                file.write(os.urandom(1 << 20))
        for name in ("config.json", "tokenizer.json", "modules.json"):
            with files.open_output_stream(f"models/model/{name}") as file:
                file.write(b"{}")
        proxy = DelayingProxy(int(variables["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]), milliseconds / 2000)
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.port}"
        yield proxy


def measure(proxy: DelayingProxy, code: str, processes: int) -> dict[str, float]:
    """Seconds until all processes have the model, and requests of them all."""
    with tempfile.TemporaryDirectory() as target:
        environment = os.environ | {"XDG_CACHE_HOME": f"{target}/cache", "PYTHONPATH": ROOT}
        before, started = proxy.requests, time.monotonic()
        running = [
            subprocess.Popen([sys.executable, "-c", code, f"{target}/{number}"], env=environment)
            for number in range(processes)
        ]
        assert not any(process.wait() for process in running)
        seconds, requests = time.monotonic() - started, proxy.requests - before
    return {"processes": processes, "seconds": round(seconds, 1), "requests": requests}


@click.command()
@click.option("--mib", default=600)
@click.option("--processes", default=8)
@click.option("--milliseconds", default=30.0)
@click.option("--repeats", default=2)
def main(mib: int, processes: int, milliseconds: float, repeats: int) -> None:
    """Measure, alternating, and print one line of JSON for each."""
    with store(mib, milliseconds) as proxy:
        for count in (1, processes):
            for _ in range(repeats):
                for name, code in (("ours", OURS), ("pyarrow", PEER)):
                    print(json.dumps({"client": name} | measure(proxy, code, count)), flush=True)


if __name__ == "__main__":
    main()

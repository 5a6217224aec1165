"""A TCP proxy in front of a server that can refuse, delay or cut requests of one kind."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

REQUEST_LINE = re.compile(rb"(?:GET|HEAD|PUT|POST|DELETE) \S+ HTTP/1.1")
REPLIES = {
    "500": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "403": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
}


class FaultyProxy:
    """Forwards bytes; the next `times` requests that start with `verb` meet `fault` instead.

    Attributes:
        fault: `500` or `403` (answered by the proxy), `reset` (cut in the middle), `slow` (two seconds late).
        met: Number of requests that met the fault so far.
        request_lines: The first line of every request.
        on_request: Called with the first line of every request, before it is forwarded.
    """

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self.upstream, self.verb, self.fault, self.times, self.met = port, b"PUT", "", 0, 0
        self.request_lines: list[str] = []
        self.on_request: Callable[[str], None] = lambda line: None
        self.forgotten = 0.0
        self.listener = socket.create_server((address, 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def fail(self, fault: str, times: int, verb: str = "PUT") -> None:
        """Let the next requests of a kind fail."""
        self.fault, self.times, self.verb, self.met = fault, times, verb.encode(), 0

    def forget(self) -> None:
        """From now on swallow what arrives on connections that exist, as a NAT does with those long idle."""
        self.forgotten = time.monotonic()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self.upstream))
        threading.Thread(target=_pump, args=(server, client), daemon=True).start()
        began = time.monotonic()
        try:
            while data := client.recv(1 << 16):
                if began < self.forgotten:
                    continue
                if line := REQUEST_LINE.match(data):
                    self.request_lines.append(line[0].decode())
                    self.on_request(line[0].decode())
                if self.times > 0 and data.startswith(self.verb) and self._meet(client):
                    break
                server.sendall(data)
        except OSError:
            pass
        client.close()
        server.close()

    def _meet(self, client: socket.socket) -> bool:
        """Do to a request what is to be done; returns whether its connection ends."""
        self.times, self.met = self.times - 1, self.met + 1
        if self.fault == "slow":
            time.sleep(2)
            return False
        if self.fault in REPLIES:
            client.sendall(REPLIES[self.fault])
        else:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        return True


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Forward what a server sends, and that it closes a connection."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)


@contextmanager
def faulty_proxy(port: int, address: str = "127.0.0.1") -> Iterator[FaultyProxy]:
    """A proxy at an address of this machine before the server at a port of it, until the block ends."""
    proxy = FaultyProxy(port, address)
    try:
        yield proxy
    finally:
        proxy.listener.close()

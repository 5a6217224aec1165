"""A driver that is told to stop says what is kept and ends at once, as if it had been killed.

Nothing is unwound: the next driver goes on from whatever a killed one leaves, and `ray job stop` kills after
three seconds. A thread listens at `signal.set_wakeup_fd`, since Python's own handlers wait until a call into
a library returns, which an upload does not do for minutes.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from boom_ray.runtime.console import console

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_last_words: list[Callable[[str], str]] = [
    lambda name: f"stopped by {name}: what is finished is kept. Run the same command again to go on"
]


def _handler(number: int, frame: FrameType | None) -> None:
    """The listening thread has heard it as well."""


@contextmanager
def heeded() -> Iterator[None]:
    """While the block runs, SIGTERM and Ctrl-C print a last line and end the process with 128 + their number.

    Only the main thread can be told; elsewhere nothing changes, nor for a signal that is ignored (`nohup`).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    listening, waking = socket.socketpair()
    waking.setblocking(False)
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _handler) for number in heard}
    before_waking = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(listening,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before_waking)
        for number, handler in before.items():
            signal.signal(number, handler)
        waking.close()


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers back that the block replaces: `ray.init` has one of its own."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    if _handler in before.values():
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def last_words(words: Callable[[str], str]) -> Iterator[None]:
    """While the block runs, `words(name of the signal)` does what is left to do, and gives the last line."""
    _last_words.append(words)
    try:
        yield
    finally:
        _last_words.remove(words)


def _listen(listening: socket.socket) -> None:
    with listening:
        while heard := listening.recv(1):
            if heard[0] in SIGNALS:
                try:
                    line = _last_words[-1](signal.Signals(heard[0]).name)
                    console.show_cursor()
                    console.print(line, markup=False)
                finally:
                    os._exit(128 + heard[0])

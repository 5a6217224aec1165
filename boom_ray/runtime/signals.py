"""SIGTERM and Ctrl-C: a driver prints what it keeps and exits at once, as if it had been killed.

Nothing is cleaned up: the next driver resumes from whatever a killed one leaves, and `ray job stop` kills
after three seconds. A thread listens at `signal.set_wakeup_fd`, because Python runs its own signal handlers
only after a call into a C library returns, which takes minutes for an upload.
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
_stop_messages: list[Callable[[str], str]] = [
    lambda name: f"stopped by {name}: what is finished is kept. Run the same command again to go on"
]


def _handler(number: int, frame: FrameType | None) -> None:
    """Does nothing: a signal reaches the wakeup file descriptor only if it has a Python handler."""


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """Within the block, SIGTERM and Ctrl-C print a last line and exit with 128 + the signal's number.

    Only the main thread can set handlers: in other threads the block changes nothing. An ignored signal
    (`nohup`) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    listening, waking = socket.socketpair()
    waking.setblocking(False)
    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _handler) for number in handled}
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
    """Restore the handlers of `exit_on_signal` after the block: `ray.init` replaces them with its own."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    if _handler in before.values():
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_message(words: Callable[[str], str]) -> Iterator[None]:
    """Within the block, `words(signal name)` runs before the exit and returns the last line to print."""
    _stop_messages.append(words)
    try:
        yield
    finally:
        _stop_messages.remove(words)


def _listen(listening: socket.socket) -> None:
    with listening:
        while received := listening.recv(1):
            if received[0] in SIGNALS:
                try:
                    line = _stop_messages[-1](signal.Signals(received[0]).name)
                    console.show_cursor()
                    console.print(line, markup=False)
                finally:
                    # Not sys.exit: it would only end this thread.
                    os._exit(128 + received[0])

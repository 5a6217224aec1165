"""Progress of long work: bars on a terminal, plain lines in a job log, or a callback of the caller."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from boom_ray.runtime.console import console

SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True)
class ProgressEvent:
    """The state of one counter.

    Attributes:
        name: The counter's name, such as `bag-1`.
        completed: From 0 to `total`.
        note: Further values as text, such as throughput and remaining time.
    """

    name: str
    completed: int
    total: int
    note: str = ""


ProgressCallback = Callable[[ProgressEvent], None]
_callback: ContextVar[ProgressCallback | None] = ContextVar("boom_ray_progress", default=None)


@contextmanager
def reported_to(callback: ProgressCallback | None) -> Iterator[None]:
    """Within the block, progress is reported to `callback` instead of the console; None changes nothing."""
    if callback is None:
        yield
        return
    token = _callback.set(callback)
    try:
        yield
    finally:
        _callback.reset(token)


class Progress:
    """Several named counters, each from 0 to its total.

    Example:
        >>> with Progress() as progress:
        ...     progress.update("bag-1", completed=10, total=40, note="loss 0.31")
    """

    def __init__(self) -> None:
        self._callback = _callback.get()
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=self._callback is not None or not console.is_terminal,
        )
        self._ids: dict[str, TaskID] = {}
        self._last: dict[str, tuple[int, float]] = {}

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, name: str, completed: int, total: int, note: str = "") -> None:
        """Set one counter."""
        if self._callback is not None:
            self._callback(ProgressEvent(name, completed, total, note))
        elif console.is_terminal:
            if name not in self._ids:
                self._ids[name] = self._bars.add_task(name, note="")
            self._bars.update(self._ids[name], completed=completed, total=total, note=note)
        else:
            self._print_line(name, completed, total, note)

    def _print_line(self, name: str, completed: int, total: int, note: str) -> None:
        """Print a plain line at most every five seconds, and at the end."""
        previous, when = self._last.get(name, (-1, float("-inf")))
        if completed == previous:
            return
        if completed >= total or time.monotonic() - when >= SECONDS_BETWEEN_LINES:
            self._last[name] = (completed, time.monotonic())
            console.print(f"{name}  {completed}/{total}  {note}".rstrip(), markup=False)

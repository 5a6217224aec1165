"""Progress of long work: bars on a terminal, plain lines in a job log."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

SECONDS_BETWEEN_LINES = 5.0
LOG_WIDTH = 140  # columns of a table in a log, which has no width of its own
console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = LOG_WIDTH


class Progress:
    """Several named counters, each from 0 to its total.

    Example:
        >>> with Progress() as progress:
        ...     progress.update("bag-1", completed=10, total=40, note="loss 0.31")
    """

    def __init__(self) -> None:
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
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
        """Set one counter; a plain line is printed at most every five seconds, and at the end."""
        if console.is_terminal:
            if name not in self._ids:
                self._ids[name] = self._bars.add_task(name, note="")
            self._bars.update(self._ids[name], completed=completed, total=total, note=note)
            return
        previous, when = self._last.get(name, (-1, float("-inf")))
        if completed == previous:
            return
        if completed >= total or time.monotonic() - when >= SECONDS_BETWEEN_LINES:
            self._last[name] = (completed, time.monotonic())
            console.print(f"{name}  {completed}/{total}  {note}".rstrip())

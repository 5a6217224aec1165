"""The terminal: one console for all output, and the handler that prints the library's log on it.

Library code logs through `logging`; only the command line prints. A table is logged as text, in the width of
the console.
"""

import logging
from collections.abc import Callable

from rich.console import Console, RenderableType

LOG_WIDTH = 140  # columns of a table in a job log, which has no width of its own
console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = LOG_WIDTH


class ConsoleHandler(logging.Handler):
    """Prints log messages on the console as they are; warnings and errors begin with their level."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        console.print(f"{level}{record.getMessage()}", markup=False)


def show_log() -> Callable[[], None]:
    """Print the log of boom-ray on the console from now on; called by the command line.

    Returns:
        A function that restores the logger: a caller in the same process may have its own handlers.
    """
    logger, handler = logging.getLogger("boom_ray"), ConsoleHandler()
    level, propagate = logger.level, logger.propagate

    def restore() -> None:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate

    if any(isinstance(existing, ConsoleHandler) for existing in logger.handlers):
        return lambda: None
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return restore


def as_text(renderable: RenderableType) -> str:
    """A table or tree of rich as plain text, in the width of the console."""
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().rstrip("\n")

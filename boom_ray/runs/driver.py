"""The driver of a run: its heartbeat, and its turn.

A thread writes the heartbeat at each stage, twice a minute, and at the end, so that slow storage delays no
stage and fails none.
"""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from boom_ray import artifacts, storage
from boom_ray.errors import BoomError
from boom_ray.runs.heartbeat import (
    LOST_AFTER_SECONDS,
    SECONDS_BETWEEN_BEATS,
    BagProgress,
    Heartbeat,
    StageName,
    State,
    read_heartbeats,
)
from boom_ray.runs.layout import Layout
from boom_ray.runtime import processes, signals

SECONDS_TO_END, SECONDS_TO_STOP = 60.0, 1.5
SECONDS_BETWEEN_LOOKS = 5.0  # at the drivers ahead
logger = logging.getLogger(__name__)


class Driver:
    """Keeps the heartbeat of this process.

    Args:
        root: URI of the run.
        command: Verb it was started with.
        version: Version that it makes.
        bag: Index of the only bag that it trains, if it trains one alone.
    """

    def __init__(self, root: str, command: str, version: str, bag: int | None = None) -> None:
        now = time.time()
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}-{uuid.uuid4().hex[:8]}"
        self.root, self.uri = root, storage.join(Layout(root).heartbeats, f"{name}.json")
        self.beat = Heartbeat(
            driver=name,
            command=command,
            version=version,
            bag=bag,
            started=now,
            time=now,
            host=socket.gethostname(),
            pid=os.getpid(),
            process_name=processes.own_name(),
            job=artifacts.submission_id(),
        )
        self._lock, self._storing, self._changed = threading.Lock(), threading.Lock(), threading.Event()
        self._has_warned = False
        self._writer = threading.Thread(target=self._write_until_end, daemon=True)
        self._writer.start()

    def await_turn(self) -> None:
        """Wait until no other driver is at work on the same version, or on the same bag of it."""
        seen, has_turn = "", False
        while not has_turn:
            self._update(state="waiting")
            self._store()
            while ahead := self._ahead():
                first = ahead[0]
                line = f"{first.process} is at work on {first.version}: {first.command}, {first.stage}"
                if line != seen:
                    logger.info("%s. Waiting until it ends, or is silent for %g s", line, LOST_AFTER_SECONDS)
                seen = line
                time.sleep(SECONDS_BETWEEN_LOOKS)
            self._update(state="running")
            self._store()
            has_turn = not self._ahead()

    def _ahead(self) -> list[Heartbeat]:
        try:
            now = time.time()
            return self.beat.ahead(beat.at(now) for beat in read_heartbeats(self.root))
        except BoomError as error:
            self._warn(error)
            return []

    def begin(self, stage: StageName) -> None:
        """Report the start of a stage."""
        self._update(stage=stage)
        self._changed.set()

    def show(self, bags: dict[str, BagProgress]) -> None:
        """Report the progress of the bags with the next heartbeat."""
        self._update(bags=bags)

    def end(self, state: State, message: str, patience: float = SECONDS_TO_END) -> None:
        """Report the end, and wait up to `patience` seconds until that is stored. The first report stays."""
        self._update(state=state, message=message)
        self._changed.set()
        self._writer.join(patience)

    def stopped(self, signal_name: str) -> str:
        """Report that a signal ended the driver.

        Returns:
            The last line for the terminal: what is kept.
        """
        self.end("stopped", f"by {signal_name}", SECONDS_TO_STOP)
        beat = self.beat
        unfinished = [
            name for name, bag in beat.bags.items() if bag.failed is None and bag.step < bag.num_steps
        ]
        more = f"; {', '.join(unfinished)} will resume from the last checkpoint" if unfinished else ""
        return (
            f"stopped by {signal_name} at {beat.version}, {beat.stage}: published artifacts are kept{more}. "
            "Run the same command again to continue"
        )

    def _update(self, **changes: Any) -> None:
        with self._lock:
            if self.beat.is_active:
                self.beat = self.beat.model_copy(update=changes)

    def _write_until_end(self) -> None:
        while self._store():
            self._changed.wait(SECONDS_BETWEEN_BEATS)
            self._changed.clear()

    def _store(self) -> bool:
        """Write the heartbeat; returns whether it reports no end, so that others follow."""
        with self._storing:
            beat = self.beat.model_copy(update={"time": time.time()})
            try:
                storage.write_bytes(self.uri, beat.model_dump_json(indent=1).encode())
            except BoomError as error:  # whether this is serious shows when the run stores its artifacts
                self._warn(error)
            return beat.is_active

    def _warn(self, error: BoomError) -> None:
        if not self._has_warned:
            logger.warning("%s", error)
        self._has_warned = True


@contextmanager
def driving(root: str, command: str, version: str, bag: int | None = None) -> Iterator[Driver]:
    """The driver of the block, one at a time; its heartbeat reports how the block ended.

    Another driver of the version, in whatever process, is awaited first, so that the block must look again
    for what is published.

    Args:
        bag: Index of the only bag that is trained, if it is one alone.
    """
    driver = Driver(root, command, version, bag)
    try:
        with signals.stop_message(driver.stopped):
            driver.await_turn()
            yield driver
    except BoomError as error:
        driver.end("failed", str(error))
        raise
    except Exception as error:
        driver.end("failed", f"{type(error).__name__}: {error}")
        raise
    except BaseException as error:
        driver.end("stopped", f"by {type(error).__name__}")
        raise
    driver.end("done", "")

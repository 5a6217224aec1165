"""Heartbeats of drivers on storage, which distinguish a run at work from one whose driver died.

Each driver keeps one small file, `<root>/drivers/<start>-<random>.json`. A thread writes it at the start, at
each stage, twice a minute, and at the end, so that slow storage delays no stage and fails none.
"""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import BaseModel

from boom_ray import artifacts, storage
from boom_ray.errors import BoomError
from boom_ray.runs.layout import Layout
from boom_ray.runtime import processes, signals

SECONDS_BETWEEN_BEATS = 30.0
LOST_AFTER_SECONDS = 4 * SECONDS_BETWEEN_BEATS
SECONDS_TO_END, SECONDS_TO_STOP = 60.0, 1.5
NUM_READ = 20  # only the last drivers of a run matter, even after years of updates
State = Literal["running", "done", "failed", "stopped", "lost"]
StageName = Literal["corpus", "bags", "train", "merge", "evaluate", "compare"]
logger = logging.getLogger(__name__)


class BagProgress(BaseModel):
    """The progress of a bag as its driver knows it; `time` of the last step is in seconds since 1970."""

    step: int = 0
    num_steps: int = 0
    attempt: int = 1
    time: float = 0.0
    failed: str | None = None


class Heartbeat(BaseModel):
    """The content of a driver's file; `time` is when it was written, `job` a submission id of Ray."""

    command: str
    version: str
    stage: StageName = "corpus"
    state: State = "running"
    message: str = ""
    started: float
    time: float
    host: str
    pid: int
    process_name: str
    job: str | None = None
    bags: dict[str, BagProgress] = {}

    def at(self, now: float) -> "Heartbeat":
        """This heartbeat, with state `lost` if it claims to run but is too old or its process has ended."""
        if self.state != "running":
            return self
        silence = now - self.time
        if silence <= LOST_AFTER_SECONDS and not processes.has_ended(self.process_name):
            return self
        driver = f"process {self.pid} on {self.host}"
        reason = f"{driver} died without reporting an end; its last heartbeat is {age(silence)} old"
        return self.model_copy(update={"state": "lost", "message": reason})


def read_heartbeats(root: str) -> list[Heartbeat]:
    """The heartbeats of the last drivers of a run, oldest driver first."""
    directory = Layout(root).heartbeats
    names = [name for name in storage.list_names(directory) if name.endswith(".json")]
    files = [storage.read_bytes(storage.join(directory, name)) for name in names[-NUM_READ:]]
    return sorted(map(Heartbeat.model_validate_json, files), key=lambda beat: beat.started)


def age(seconds: float) -> str:
    """A duration in the largest unit of which it has at least two."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


class Driver:
    """Keeps the heartbeat of this process.

    Args:
        root: URI of the run.
        command: Verb it was started with.
        version: Version that it makes.
    """

    def __init__(self, root: str, command: str, version: str) -> None:
        now = time.time()
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}-{uuid.uuid4().hex[:8]}.json"
        self.uri = storage.join(Layout(root).heartbeats, name)
        self.beat = Heartbeat(
            command=command,
            version=version,
            started=now,
            time=now,
            host=socket.gethostname(),
            pid=os.getpid(),
            process_name=processes.own_name(),
            job=artifacts.submission_id(),
        )
        self._lock, self._changed = threading.Lock(), threading.Event()
        self._writer = threading.Thread(target=self._write_until_end, daemon=True)
        self._writer.start()

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
            if self.beat.state == "running":
                self.beat = self.beat.model_copy(update=changes)

    def _write_until_end(self) -> None:
        warned = False
        while True:
            beat = self.beat.model_copy(update={"time": time.time()})
            try:
                storage.write_bytes(self.uri, beat.model_dump_json(indent=1).encode())
            except BoomError as error:  # whether this is serious shows when the run stores its artifacts
                if not warned:
                    logger.warning("%s", error)
                warned = True
            if beat.state != "running":
                return
            self._changed.wait(SECONDS_BETWEEN_BEATS)
            self._changed.clear()


@contextmanager
def driving(root: str, command: str, version: str) -> Iterator[Driver]:
    """The driver of the block; its heartbeat reports how the block ended."""
    driver = Driver(root, command, version)
    try:
        with signals.stop_message(driver.stopped):
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

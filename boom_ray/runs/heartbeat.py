"""What a driver says of itself in storage, so that a run at work can be told from one that died.

Each driver keeps one small file, `<root>/drivers/<start>-<random>.json`, written when it begins, at each
stage, twice a minute, and when it ends. A thread writes it: storage that is slow, or away for a while, holds
up no stage and fails none.
"""

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
from boom_ray.runtime import processes, signals
from boom_ray.runtime.console import console

DRIVERS = "drivers"
SECONDS_BETWEEN_BEATS = 30.0
LOST_AFTER_SECONDS = 4 * SECONDS_BETWEEN_BEATS
SECONDS_TO_END, SECONDS_TO_STOP = 60.0, 1.5
READ = 20  # of a run that is updated for years, only the last drivers matter
State = Literal["running", "done", "failed", "stopped", "lost"]
Stage = Literal["corpus", "bags", "train", "merge", "evaluate", "compare"]


class BagSaid(BaseModel):
    """How far a driver knows a bag to be; `time` is that of its last step, in seconds since 1970."""

    step: int = 0
    num_steps: int = 0
    attempt: int = 1
    time: float = 0.0
    failed: str | None = None


class Said(BaseModel):
    """The content of a driver's file; `time` is when it was written, `job` a submission id of Ray's."""

    command: str
    version: str
    stage: Stage = "corpus"
    state: State = "running"
    message: str = ""
    started: float
    time: float
    host: str
    pid: int
    process_name: str
    job: str | None = None
    bags: dict[str, BagSaid] = {}

    def at(self, now: float) -> "Said":
        """The same, but `lost` if it claims to run and gives no sign of life, or its process is gone."""
        if self.state != "running":
            return self
        silence = now - self.time
        if silence <= LOST_AFTER_SECONDS and not processes.has_ended(self.process_name):
            return self
        who = f"process {self.pid} on {self.host}"
        reason = f"{who} ended without a word; it was last heard of {age(silence)} ago"
        return self.model_copy(update={"state": "lost", "message": reason})


def read_drivers(root: str) -> list[Said]:
    """What the last drivers of a run said, oldest first."""
    place = storage.join(root, DRIVERS)
    names = [name for name in storage.list_names(place) if name.endswith(".json")]
    files = [storage.read_bytes(storage.join(place, name)) for name in names[-READ:]]
    return sorted(map(Said.model_validate_json, files), key=lambda said: said.started)


def age(seconds: float) -> str:
    """A duration as people say it."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


class Driver:
    """Keeps the file of this process.

    Args:
        root: URI of the run.
        command: Verb it was started with.
        version: What it makes.
    """

    def __init__(self, root: str, command: str, version: str) -> None:
        now = time.time()
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}-{uuid.uuid4().hex[:8]}.json"
        self.uri = storage.join(root, DRIVERS, name)
        self.said = Said(
            command=command,
            version=version,
            started=now,
            time=now,
            host=socket.gethostname(),
            pid=os.getpid(),
            process_name=processes.own_name(),
            job=artifacts.submission_id(),
        )
        self._lock, self._news = threading.Lock(), threading.Event()
        self._writer = threading.Thread(target=self._write_on, daemon=True)
        self._writer.start()

    def begin(self, stage: Stage) -> None:
        """Say that a stage begins."""
        self._say(stage=stage)
        self._news.set()

    def show(self, bags: dict[str, BagSaid]) -> None:
        """Say how far the bags are, with the next beat."""
        self._say(bags=bags)

    def end(self, state: State, message: str, patience: float = SECONDS_TO_END) -> None:
        """Say how it ended, and wait a while until that is stored. What was said first stays."""
        self._say(state=state, message=message)
        self._news.set()
        self._writer.join(patience)

    def stopped(self, signal_name: str) -> str:
        """End because of a signal; returns what is kept, for the last line."""
        self.end("stopped", f"by {signal_name}", SECONDS_TO_STOP)
        said = self.said
        under_way = [
            name for name, bag in said.bags.items() if bag.failed is None and bag.step < bag.num_steps
        ]
        more = f"; {', '.join(under_way)} will go on from the last checkpoint" if under_way else ""
        return (
            f"stopped by {signal_name} at {said.version}, {said.stage}: what is published is kept{more}. "
            "Run the same command again to go on"
        )

    def _say(self, **news: Any) -> None:
        with self._lock:
            if self.said.state == "running":
                self.said = self.said.model_copy(update=news)

    def _write_on(self) -> None:
        complained = False
        while True:
            said = self.said.model_copy(update={"time": time.time()})
            try:
                storage.write_bytes(self.uri, said.model_dump_json(indent=1).encode())
            except BoomError as error:  # what the run itself stores will tell whether this is serious
                if not complained:
                    console.print(f"warning: {error}", markup=False)
                complained = True
            if said.state != "running":
                return
            self._news.wait(SECONDS_BETWEEN_BEATS)
            self._news.clear()


@contextmanager
def driving(root: str, command: str, version: str) -> Iterator[Driver]:
    """The driver of what the block does, which says how the block ended."""
    driver = Driver(root, command, version)
    try:
        with signals.last_words(driver.stopped):
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

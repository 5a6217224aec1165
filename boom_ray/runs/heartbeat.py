"""Heartbeats of drivers on storage, which distinguish a run at work from one whose driver died.

Each driver keeps one small file, `<root>/drivers/<start>-<random>.json`.
"""

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel

from boom_ray import storage
from boom_ray.runs.layout import Layout
from boom_ray.runtime import processes

SECONDS_BETWEEN_BEATS = 30.0
LOST_AFTER_SECONDS = 4 * SECONDS_BETWEEN_BEATS
NUM_READ = 20  # only the last drivers of a run matter, even after years of updates
State = Literal["waiting", "running", "done", "failed", "stopped", "lost"]
StageName = Literal["corpus", "bags", "train", "merge", "evaluate", "compare"]


class BagProgress(BaseModel):
    """The progress of a bag as its driver knows it; `time` of the last step is in seconds since 1970."""

    step: int = 0
    num_steps: int = 0
    attempt: int = 1
    num_ranks: int = 0
    time: float = 0.0
    failed: str | None = None


class Heartbeat(BaseModel):
    """The content of a driver's file.

    Attributes:
        driver: Name of the file without its ending.
        bag: Index of the only bag that it trains, if it trains one alone.
        state: `waiting` while another driver is at work on the same.
        time: When it was written, in seconds since 1970.
        job: Submission id of the Ray job, if there is one.
    """

    driver: str
    command: str
    version: str
    bag: int | None = None
    stage: StageName = "corpus"
    state: State = "waiting"
    message: str = ""
    started: float
    time: float
    host: str
    pid: int
    process_name: str
    job: str | None = None
    bags: dict[str, BagProgress] = {}

    def at(self, now: float) -> "Heartbeat":
        """This heartbeat, with state `lost` if it reports no end but is too old, or its process has ended."""
        if not self.is_active:
            return self
        silence = now - self.time
        if silence <= LOST_AFTER_SECONDS and not processes.has_ended(self.process_name):
            return self
        reason = f"{self.process} died without reporting an end; its last heartbeat is {age(silence)} old"
        return self.model_copy(update={"state": "lost", "message": reason})

    @property
    def is_active(self) -> bool:
        """Whether it reports no end of its driver."""
        return self.state in ("waiting", "running")

    @property
    def process(self) -> str:
        """Where the driver runs."""
        return f"process {self.pid} on {self.host}"

    def ahead(self, others: Iterable["Heartbeat"]) -> list["Heartbeat"]:
        """Those of the active drivers of the same version that this one, waiting or running, waits for.

        A driver first writes that it waits, and runs as soon as none is ahead; it writes that, and waits
        again if one is ahead then. So two never run: the second to write that it waits either finds the
        first running, or is found by it, and the earlier of them goes on. Requires that whoever reads a file
        after it was written finds it, as all supported storage guarantees.
        """
        rivals = [beat for beat in others if beat.is_active and self._trains_the_same_as(beat)]
        return [
            beat
            for beat in rivals
            if beat._order < self._order or (beat.state == "running" and self.state == "waiting")
        ]

    def _trains_the_same_as(self, other: "Heartbeat") -> bool:
        bags = {self.bag, other.bag}
        is_rival = other.version == self.version and (len(bags) == 1 or None in bags)
        return is_rival and other.driver != self.driver

    @property
    def _order(self) -> tuple[float, str]:
        return self.started, self.driver


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

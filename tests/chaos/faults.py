"""The faults: each kind affects a node or the object store for a limited time."""

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from tests.chaos import cluster
from tests.chaos.cluster import HEAD, NODES, WORKERS, Node
from tests.faulty_proxy import FaultyProxy

KINDS = ("worker", "driver", "raylet", "gcs", "cut", "disk", "store")
# The requests of each stage to the store; `{root}` is the path of the run.
STAGES = {
    "corpus": r"PUT {root}/tiny/corpus/",
    "bags": r"PUT {root}/tiny/bags/",
    "train": r"PUT {root}/tiny/(checkpoints|models/bag-\d)/",
    "merge": r"(PUT|POST) {root}/tiny/models/v0001/",
    "evaluate": r"PUT {root}/tiny/evaluation/",
    "publish": r"PUT {root}/tiny/models/v0001/artifact.json",
    "embed": r"PUT {root}/vectors/",
    "update": r"(PUT|POST) {root}/tiny/(core|updates|models/v0002)/",
}
REQUESTS = {"train": 20, "merge": 6, "evaluate": 3, "publish": 1, "embed": 3, "update": 40}


@dataclass(frozen=True)
class Fault:
    """One fault, injected at a stage's `request`-th request to the store.

    Attributes:
        seconds: Duration of a cut-off node or a full disk.
        answer: The behaviour of the store for the next `times` requests.
    """

    stage: str
    request: int
    kind: str
    node: Node
    seconds: int
    answer: str
    times: int

    def __str__(self) -> str:
        action = {
            "worker": "kill a worker", "driver": "kill the driver", "gcs": "kill the GCS",
            "raylet": f"kill the raylet of {self.node.name}",
            "cut": f"cut {self.node.name} off for {self.seconds} s",
            "disk": f"fill the disk of {self.node.name} for {self.seconds} s",
            "store": f"{self.times} x {self.answer} from the store",
        }[self.kind]  # fmt: skip
        return f"{self.stage} request {self.request}: {action}"


def draw(seed: int) -> list[Fault]:
    """Draw three to six faults, ordered by stage."""
    generator = random.Random(seed)
    faults = []
    for _ in range(generator.randint(3, 6)):
        stage, kind = generator.choice(list(STAGES)), generator.choice(KINDS)
        faults.append(
            Fault(
                stage=stage,
                request=generator.randint(1, REQUESTS.get(stage, 2)),
                kind=kind,
                node=generator.choice(NODES if kind == "disk" else WORKERS),
                seconds=generator.choice([5, 15, 30, 60] if kind == "cut" else [10, 20]),
                answer=generator.choice(["slow", "500", "reset"]),
                times=generator.choice([3, 10, 30]),
            )
        )
    return sorted(faults, key=lambda fault: (list(STAGES).index(fault.stage), fault.request))


class FaultInjector:
    """Injects faults into the cluster and the store, and ends those with a duration.

    Args:
        seed: Determines which of several processes is killed.
        log: Called with a line for each action.
    """

    def __init__(self, store: FaultyProxy, seed: int, log: Callable[[str], None]) -> None:
        self.store, self.generator, self.log = store, random.Random(seed), log
        self.pending: list[tuple[threading.Timer, Callable[[], None]]] = []

    def inject(self, fault: Fault) -> None:
        """Inject one fault."""
        getattr(self, f"_{fault.kind}")(fault)

    def end(self) -> None:
        """End all faults that are still active."""
        for timer, undo in self.pending:
            if timer.is_alive():
                timer.cancel()
                undo()
        self.pending.clear()
        self.store.fail("", 0)

    def _undo_after(self, seconds: int, undo: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, undo)
        self.pending.append((timer, undo))
        timer.start()

    def _worker(self, fault: Fault) -> None:
        """Kill an actor or task that is working: a rank, an encoder, a merge worker, a measurement."""
        busy = [p for node in NODES for p in running(node, "ray::") if not is_infrastructure(p)]
        if not busy:
            self.log("  no worker is running")
            return self._driver(fault)
        victim = self.generator.choice(busy)
        self.log(f"  killed {title(victim)}")
        victim.kill()

    def _driver(self, fault: Fault) -> None:
        for process in running(HEAD, "jobs/"):
            process.kill()

    def _raylet(self, fault: Fault) -> None:
        for process in running(fault.node, "/raylet/raylet "):
            process.kill()

    def _gcs(self, fault: Fault) -> None:
        for process in running(HEAD, "/gcs/gcs_server "):
            process.kill()

    def _cut(self, fault: Fault) -> None:
        cluster.cut_off(fault.node)
        self._undo_after(fault.seconds, lambda: cluster.join(fault.node))

    def _disk(self, fault: Fault) -> None:
        path = os.path.join(fault.node.disk, "full")
        fill(path)
        self._undo_after(fault.seconds, lambda: os.path.exists(path) and os.remove(path))

    def _store(self, fault: Fault) -> None:
        verb = self.generator.choice(["PUT", "GET", "HEAD"])
        self.log(f"  for {verb}")
        self.store.fail(fault.answer, fault.times, verb)


def fill(path: str) -> None:
    """Fill the disk of a path."""
    with open(path, "ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def title(process: psutil.Process) -> str:
    """Command line, or empty when the process has ended."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def running(node: Node, pattern: str) -> list[psutil.Process]:
    """The processes of a node whose command line contains a pattern."""
    return [process for process in node.processes() if pattern in title(process) + " "]


def is_infrastructure(process: psutil.Process) -> bool:
    """Whether a process runs no code of boom-ray."""
    idle = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
    return not title(process).startswith("ray::") or title(process).startswith(idle)

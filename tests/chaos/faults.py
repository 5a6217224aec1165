"""What is done to a cluster: each kind of fault strikes a node, or the store behind it, and passes."""

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
# What the proxy before the store sees of each stage; `{root}` is the path of the run.
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
    """One fault, when a stage makes its `request`-th request to the store.

    Attributes:
        seconds: How long a node is cut off, or its disk full.
        answer: What the store does instead of what it is asked, `times` times.
    """

    stage: str
    request: int
    kind: str
    node: Node
    seconds: int
    answer: str
    times: int

    def __str__(self) -> str:
        what = {
            "worker": "kill a worker", "driver": "kill the driver", "gcs": "kill the GCS",
            "raylet": f"kill the raylet of {self.node.name}",
            "cut": f"cut {self.node.name} off for {self.seconds} s",
            "disk": f"fill the disk of {self.node.name} for {self.seconds} s",
            "store": f"{self.times} x {self.answer} from the store",
        }[self.kind]  # fmt: skip
        return f"{self.stage} request {self.request}: {what}"


def draw(seed: int) -> list[Fault]:
    """Three to six faults, in the order of their stages."""
    chance = random.Random(seed)
    faults = []
    for _ in range(chance.randint(3, 6)):
        stage, kind = chance.choice(list(STAGES)), chance.choice(KINDS)
        faults.append(
            Fault(
                stage=stage,
                request=chance.randint(1, REQUESTS.get(stage, 2)),
                kind=kind,
                node=chance.choice(NODES if kind == "disk" else WORKERS),
                seconds=chance.choice([5, 15, 30, 60]) if kind == "cut" else chance.choice([10, 20]),
                answer=chance.choice(["slow", "500", "reset"]),
                times=chance.choice([3, 10, 30]),
            )
        )
    return sorted(faults, key=lambda fault: (list(STAGES).index(fault.stage), fault.request))


class Strikes:
    """Does faults to the cluster and the store, and undoes those that pass.

    Args:
        seed: Decides which of several processes is killed.
        say: Takes what is done, as it is done.
    """

    def __init__(self, store: FaultyProxy, seed: int, say: Callable[[str], None]) -> None:
        self.store, self.chance, self.say = store, random.Random(seed), say
        self.pending: list[tuple[threading.Timer, Callable[[], None]]] = []

    def strike(self, fault: Fault) -> None:
        """Do one fault."""
        getattr(self, f"_{fault.kind}")(fault)

    def end(self) -> None:
        """Undo what has not passed yet."""
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
        """Whatever actor or task works now: a rank, an encoder, a part of a merge, a measurement."""
        busy = [p for node in NODES for p in running(node, "ray::") if not is_infrastructure(p)]
        if not busy:
            self.say("  there is no worker")
            return self._driver(fault)
        victim = self.chance.choice(busy)
        self.say(f"  killed {title(victim)}")
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
        verb = self.chance.choice(["PUT", "GET", "HEAD"])
        self.say(f"  for {verb}")
        self.store.fail(fault.answer, fault.times, verb)


def fill(path: str) -> None:
    """Leave no byte on the disk that a path is on."""
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
    """The processes of a node that have a pattern in their command line."""
    return [process for process in node.processes() if pattern in title(process) + " "]


def is_infrastructure(process: psutil.Process) -> bool:
    """Whether a process of Ray runs nothing of ours."""
    idle = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
    return not title(process).startswith("ray::") or title(process).startswith(idle)

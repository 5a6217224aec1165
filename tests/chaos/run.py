"""`python -m tests.chaos.run --seeds 20`: the pipeline as users run it, on a cluster with injected faults.

Each seed draws three to six faults over the stages and makes the same models under its own prefix, by jobs
that are submitted with `ray job submit`, and again, unchanged, while they fail. Every digest must equal that
of an undisturbed run, and every file is checked. Requires root, Linux, and BOOM_RAY_SWIFT_ENV.
"""

import argparse
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator

from tests.chaos import cluster
from tests.chaos.environment import INPUT, Head, everything
from tests.chaos.faults import STAGES, FaultInjector, draw
from tests.chaos.outcome import Outcome, compare, summary, verified_digests
from tests.faulty_proxy import FaultyProxy

MOST_SUBMISSIONS = 12
FIRST_PAUSE, LONGEST_PAUSE = 2, 60  # seconds before a job is submitted again, doubled each time


class Run:
    """The jobs of one seed, and the faults injected while they run."""

    def __init__(self, head: Head, store: FaultyProxy, root: str, seed: int | None) -> None:
        self.head, self.store, self.root = head, store, root
        self.outcome = Outcome(seed)
        self.faults = [] if seed is None else draw(seed)
        self.outcome.drawn = [str(fault) for fault in self.faults]
        self.updates = seed is None or any(fault.stage == "update" for fault in self.faults)
        self.injector = FaultInjector(store, seed or 0, self._log)
        path = "/" + root.removeprefix("s3://")
        self.stages = {name: re.compile(pattern.format(root=path)) for name, pattern in STAGES.items()}
        self.requests = dict.fromkeys(STAGES, 0)
        self.started = 0.0
        self.lock = threading.Lock()

    def _log(self, text: str) -> None:
        line = f"{time.monotonic() - self.started:6.1f} s  {text}"
        self.outcome.log.append(line)
        print(line, flush=True)

    def _watch(self, line: str) -> None:
        """Count the requests of each stage, and inject the faults that are due."""
        with self.lock:
            for stage in [stage for stage, pattern in self.stages.items() if pattern.match(line)]:
                self.requests[stage] += 1
                now = stage, self.requests[stage]
                for fault in [fault for fault in self.faults if (fault.stage, fault.request) == now]:
                    self._log(f"FAULT {fault}")
                    self.outcome.struck.append(fault.kind)
                    self.faults.remove(fault)
                    self.injector.inject(fault)

    def run(self, with_update: bool) -> Outcome:
        """Run all jobs; returns the outcome with all problems."""
        storage_option = f"--storage {self.root}"
        jobs = {
            "run": f"python jobs/run.py recipe.yaml {storage_option}",
            "embed": f"python jobs/embed.py {self.root}/tiny/models/v0001 {INPUT}/texts {self.root}/vectors",
        }
        if with_update:
            jobs["update"] = (
                f"python jobs/update.py recipe.yaml {storage_option} --new-data {INPUT}/http.jsonl"
            )
        self.started = time.monotonic()
        self.store.on_request = self._watch
        try:
            for name, entrypoint in jobs.items():
                began = time.monotonic()
                self._finish(name, entrypoint)
                self.outcome.seconds[name] = round(time.monotonic() - began, 1)
        except TimeoutError as error:
            self.outcome.wrong.append(str(error))
        finally:
            self.store.on_request = lambda line: None
            self.injector.end()
        return self.outcome

    def _finish(self, name: str, entrypoint: str) -> None:
        """Submit a job until it succeeds."""
        for submission in range(1, MOST_SUBMISSIONS + 1):
            self.outcome.submissions[name] = submission
            job = self.head.submit(entrypoint)
            self._log(f"{name}: submitted")
            status = self.head.await_end(job)
            self._log(f"{name}: {status}")
            if status == "SUCCEEDED":
                return
            output = self.head.logs(job)
            self.outcome.errors.append(f"{name}: {status}\n{output[-1500:]}")
            time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE << (submission - 1)))
        raise TimeoutError(
            f"{name}: not done after {MOST_SUBMISSIONS} submissions\n{self.outcome.errors[-1]}"
        )


def run_seeds(
    head: Head, store: FaultyProxy, seeds: Iterable[int | None], deadline: float = float("inf")
) -> Iterator[Outcome]:
    """Yield the undisturbed outcome, then that of each seed, until the deadline."""
    runs = [Run(head, store, f"s3://bucket/seed-{seed}", seed) for seed in seeds]
    updated = any(run.updates for run in runs)
    calm = Run(head, store, "s3://bucket/calm", None).run(updated)
    calm.digests, problems = verified_digests("s3://bucket/calm")
    calm.wrong += problems
    yield calm
    for run in runs:
        if time.monotonic() > deadline:
            return
        cluster.await_nodes(len(cluster.NODES))
        outcome = run.run(run.updates)
        if not outcome.wrong:
            compare(outcome, run.root, calm, "s3://bucket/calm")
        yield outcome


def main() -> None:
    """Run seeds, write their outcomes, and exit with 1 if any has problems."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600, help="start no seed after this time")
    parser.add_argument("--out", help="append JSON lines to this file; skip seeds that it contains")
    parser.add_argument("--summary", metavar="FILE", help="only print statistics of a file of --out")
    options = parser.parse_args()
    if options.summary:
        with open(options.summary) as file:
            return print(json.dumps(summary(file.readlines()), indent=1))
    wrong = 0
    deadline = time.monotonic() + 60 * options.minutes
    seeds = list(range(options.first, options.first + options.seeds))
    if options.out and os.path.exists(options.out):
        with open(options.out) as file:
            done = {json.loads(line)["seed"] for line in file}
        seeds = [seed for seed in seeds if seed not in done]
    with everything() as (head, store):
        # The first run also warms the cluster up, so the undisturbed run is repeated.
        for outcome in run_seeds(head, store, [None, *seeds], deadline):
            wrong += bool(outcome.wrong)
            shown = {key: value for key, value in vars(outcome).items() if key not in ("log", "errors")}
            print(json.dumps(shown), flush=True)
            if options.out:
                with open(options.out, "a") as file:
                    file.write(json.dumps(vars(outcome)) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

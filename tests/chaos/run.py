"""`python -m tests.chaos.run --seeds 20`: the pipeline as users run it, on a cluster where things break.

Each seed draws three to six faults over the stages and makes the same models in a place of its own, by jobs
with `ray job submit` that are submitted again, unchanged, as long as they fail. What must come out is what an
undisturbed run made: every digest is compared, every file is checked. Needs root, Linux, and
BOOM_RAY_SWIFT_ENV.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import yaml

from boom_ray import artifact, storage
from boom_ray.errors import BoomError
from tests import texts
from tests.chaos import cluster
from tests.chaos.cluster import DASHBOARD, OUTSIDE
from tests.chaos.faults import STAGES, Strikes, draw
from tests.faulty_proxy import FaultyProxy, faulty_proxy
from tests.object_store import s3_server

ROOT = str(Path(__file__).parents[2])
INPUT = "s3://bucket/input"
MOST_SUBMISSIONS = 12
SECONDS_FOR_A_JOB = 900
NUM_TEXTS = 300


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        submissions: Of each job.
        seconds: Of the run.
        struck: The faults that were met.
        digests: Of everything that was made.
        log: What happened, with seconds since the start.
    """

    seed: int | None
    drawn: list[str] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)
    submissions: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    digests: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def prepare_input() -> None:
    """Base model, corpus, new data, evaluation and texts, on the store."""
    from tests.conftest import build_qwen3

    with tempfile.TemporaryDirectory() as local:
        build_qwen3(f"{local}/qwen3")
        texts.write_corpus(f"{local}/corpus", num_rows=32)
        pairs = list(texts.functions("http"))
        texts.write_jsonl(
            f"{local}/http.jsonl", [{"query": text, "pos": [code]} for text, code in pairs[:16]]
        )
        texts.write_beir(f"{local}/beir/email", list(texts.functions("email"))[12:32])
        names = [f"{index} {pairs[index % len(pairs)][1]}" for index in range(NUM_TEXTS)]
        os.mkdir(f"{local}/texts")
        pq.write_table(pa.table({"id": list(range(NUM_TEXTS)), "text": names}), f"{local}/texts/0.parquet")
        storage.copy_tree(local, INPUT)


def write_job(directory: str) -> str:
    """The working directory that travels with a job: code and recipe."""
    from tests.conftest import recipe_values

    for name in ("boom_ray", "jobs"):
        shutil.copytree(os.path.join(ROOT, name), os.path.join(directory, name),
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    files = {name: f"{INPUT}/corpus/{name}.jsonl" for name in ("docstring-to-code", "docstring-to-package")}
    values = recipe_values(f"{INPUT}/qwen3", files, f"{INPUT}/beir", "s3://bucket/unset")
    with open(os.path.join(directory, "recipe.yaml"), "w") as file:
        yaml.safe_dump(values, file)
    return directory


class Head:
    """The job API, with the token."""

    def __init__(self, working_directory: str) -> None:
        self.working_directory = working_directory
        self.environment = {**os.environ, **cluster.client(), "RAY_ADDRESS": DASHBOARD}

    def submit(self, entrypoint: str) -> str:
        """`ray job submit`, again while the head is not up; returns the job's id."""
        command = ["ray", "job", "submit", "--no-wait", "--working-dir", self.working_directory, "--",
                   *entrypoint.split()]  # fmt: skip
        deadline = time.monotonic() + SECONDS_FOR_A_JOB
        while True:
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
            found = re.search(r"raysubmit_\w+", done.stdout)
            if done.returncode == 0 and found:
                return found[0]
            if time.monotonic() > deadline:
                raise TimeoutError(done.stdout + done.stderr)
            time.sleep(2)

    def await_end(self, job: str) -> str:
        """SUCCEEDED, FAILED or STOPPED; LOST if the head has forgotten it."""
        deadline = time.monotonic() + SECONDS_FOR_A_JOB
        while time.monotonic() < deadline:
            status = self._asked(f"/api/jobs/{job}").get("status", "LOST")
            if status not in ("PENDING", "RUNNING", "UNKNOWN"):
                return status
            time.sleep(0.5)
        raise TimeoutError(f"{job} has not ended after {SECONDS_FOR_A_JOB} s:\n{self.logs(job)}")

    def logs(self, job: str) -> str:
        """What the job printed, as far as the head knows."""
        return self._asked(f"/api/jobs/{job}/logs").get("logs", "")

    def _asked(self, path: str) -> dict[str, Any]:
        """A job's answer; nothing for a job that is not known; UNKNOWN while the head does not answer."""
        try:
            return cluster.ask(path)
        except urllib.error.HTTPError as error:
            return {} if error.code == 404 else {"status": "UNKNOWN"}
        except (OSError, ValueError):
            return {"status": "UNKNOWN"}


class Run:
    """The jobs of one seed, and what strikes while they run."""

    def __init__(self, head: Head, store: FaultyProxy, root: str, seed: int | None) -> None:
        self.head, self.store, self.root = head, store, root
        self.outcome = Outcome(seed)
        self.faults = [] if seed is None else draw(seed)
        self.outcome.drawn = [str(fault) for fault in self.faults]
        self.strikes = Strikes(store, seed or 0, self._say)
        path = "/" + root.removeprefix("s3://")
        self.stages = {name: re.compile(pattern.format(root=path)) for name, pattern in STAGES.items()}
        self.requests = dict.fromkeys(STAGES, 0)
        self.started = time.monotonic()
        self.lock = threading.Lock()

    def _say(self, text: str) -> None:
        line = f"{time.monotonic() - self.started:6.1f} s  {text}"
        self.outcome.log.append(line)
        print(line, flush=True)

    def _watch(self, line: str) -> None:
        """Count the requests of each stage, and strike when it is time."""
        with self.lock:
            for stage in [stage for stage, pattern in self.stages.items() if pattern.match(line)]:
                self.requests[stage] += 1
                for fault in [
                    f for f in self.faults if (f.stage, f.request) == (stage, self.requests[stage])
                ]:
                    self._say(f"FAULT {fault}")
                    self.outcome.struck.append(str(fault))
                    self.faults.remove(fault)
                    self.strikes.strike(fault)

    def run(self, with_update: bool) -> Outcome:
        """Make everything; the outcome says what was wrong."""
        storage_option = f"--storage {self.root}"
        jobs = {
            "run": f"python jobs/run.py recipe.yaml {storage_option}",
            "embed": f"python jobs/embed.py {self.root}/tiny/models/v0001 {INPUT}/texts {self.root}/vectors",
        }
        if with_update:
            jobs["update"] = (
                f"python jobs/update.py recipe.yaml {storage_option} --new-data {INPUT}/http.jsonl"
            )
        self.store.on_request = self._watch
        try:
            for name, entrypoint in jobs.items():
                self._finish(name, entrypoint)
            self.outcome.seconds = time.monotonic() - self.started
        except TimeoutError as error:
            self.outcome.wrong.append(str(error))
        finally:
            self.store.on_request = lambda line: None
            self.strikes.end()
        return self.outcome

    def _finish(self, name: str, entrypoint: str) -> None:
        """Submit a job until it succeeds."""
        for submission in range(1, MOST_SUBMISSIONS + 1):
            self.outcome.submissions[name] = submission
            job = self.head.submit(entrypoint)
            self._say(f"{name}: submitted")
            status = self.head.await_end(job)
            self._say(f"{name}: {status}")
            if status == "SUCCEEDED":
                return
            said = self.head.logs(job)
            self.outcome.errors.append(f"{name}: {status}\n{said[-1500:]}")
        raise TimeoutError(
            f"{name}: not done after {MOST_SUBMISSIONS} submissions\n{self.outcome.errors[-1]}"
        )


def made(root: str) -> tuple[dict[str, str], list[str]]:
    """Digests of all artifacts below a place, each checked, and what lies beside them."""
    digests, wrong = {}, []
    files = list(storage.list_files(root))
    directories = [
        name.removesuffix(f"/{artifact.RECORD}") for name in files if name.endswith(artifact.RECORD)
    ]
    for name in directories:
        try:
            digests[name] = artifact.verify(f"{root}/{name}").digest
        except BoomError as error:
            wrong.append(str(error))
    kept = ("run.json", "recipe.json", "evaluation.json", "update.json")
    wrong += [
        f"left over: {name}" for name in files
        if not name.startswith(tuple(f"{one}/" for one in directories)) and "/evaluation/" not in name
        and not name.endswith(kept)
    ]  # fmt: skip
    return digests, wrong


def vectors(root: str) -> pa.Table:
    """All rows of the embeddings, by id."""
    names = [name for name in storage.list_files(f"{root}/vectors") if name.endswith(".parquet")]
    parts = []
    for name in names:
        with storage.open_input(f"{root}/vectors/{name}") as file:
            parts.append(pq.read_table(file))
    return pa.concat_tables(parts).sort_by("id")


def compare(outcome: Outcome, root: str, expected: Outcome, expected_root: str) -> None:
    """Note in an outcome how it differs from the undisturbed one, and what is left over."""
    outcome.digests, left = made(root)
    outcome.wrong += left
    names = [name for name in expected.digests if "v0002" not in name and "core" not in name]
    names = list(expected.digests) if "update" in outcome.submissions else names
    for name in names:
        if outcome.digests.get(name) != expected.digests[name]:
            outcome.wrong.append(f"{name}: {outcome.digests.get(name)}, undisturbed {expected.digests[name]}")
    if vectors(root) != vectors(expected_root):
        outcome.wrong.append("vectors: differ from the undisturbed ones")


@contextmanager
def everything() -> Iterator[tuple[Head, FaultyProxy]]:
    """A store with the input, a proxy before it, and the cluster, until the block ends."""
    swift = os.environ.get("BOOM_RAY_SWIFT_ENV")
    if not swift:
        sys.exit("BOOM_RAY_SWIFT_ENV is not set; tests/run.sh sets it")
    with tempfile.TemporaryDirectory() as place:
        os.makedirs(f"{place}/store")
        cluster.lay_network()
        try:
            with (
                s3_server(swift, f"{place}/store") as variables,
                faulty_proxy(int(variables["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]), OUTSIDE) as store,
                patch.dict(os.environ, variables),
            ):
                found, _ = pyarrow.fs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")
                found.create_dir("bucket")
                prepare_input()
                endpoint = {"AWS_ENDPOINT_URL": f"http://{OUTSIDE}:{store.port}"}
                cluster.start({**variables, **endpoint, "OMP_NUM_THREADS": "1"})
                os.mkdir(f"{place}/job")
                yield Head(write_job(f"{place}/job")), store
        finally:
            cluster.down()


def run_seeds(
    head: Head, store: FaultyProxy, seeds: list[int], deadline: float = float("inf")
) -> Iterator[Outcome]:
    """The undisturbed outcome, then that of each seed, as long as there is time."""
    calm = Run(head, store, "s3://bucket/calm", None).run(with_update=True)
    calm.digests, left = made("s3://bucket/calm")
    calm.wrong += left
    yield calm
    for seed in seeds:
        if time.monotonic() > deadline:
            return
        cluster.await_nodes(len(cluster.NODES))
        run = Run(head, store, f"s3://bucket/seed-{seed}", seed)
        outcome = run.run(with_update=any(fault.stage == "update" for fault in run.faults))
        if not outcome.wrong:
            compare(outcome, run.root, calm, "s3://bucket/calm")
        yield outcome


def main() -> None:
    """Run seeds, write what came of each, and end with an error if anything is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600, help="begin no seed after so long")
    parser.add_argument("--out", help="JSON lines are added to this file")
    options = parser.parse_args()
    wrong = 0
    deadline = time.monotonic() + 60 * options.minutes
    for outcome in run_seeds(list(range(options.first, options.first + options.seeds)), deadline):
        wrong += bool(outcome.wrong)
        print(
            json.dumps({key: value for key, value in vars(outcome).items() if key not in ("log", "errors")})
        )
        if options.out:
            with open(options.out, "a") as file:
                file.write(json.dumps(vars(outcome)) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

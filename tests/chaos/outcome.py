"""Compares a run under faults with an undisturbed one: same artifacts, and no leftover files."""

import json
import re
import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from boom_ray import artifacts, storage
from boom_ray.errors import BoomError

# Files outside of artifacts.
KEPT = ("run.json", "recipe.json", "evaluation.json", "update.json", "/rehearsal")
MAX_DIFFERENCE = 1e-6  # of embedding values: the order of sums depends on an encoder's threads
KEPT_BELOW = re.compile(r"/(evaluation|drivers)/")


@dataclass
class Outcome:
    """The outcome of a run.

    Attributes:
        seed: None for the undisturbed run.
        drawn: The faults of the seed.
        struck: The kinds of the injected faults; for the others the stage made too few requests.
        submissions: Number of submissions of each job.
        seconds: Duration of each job, from its first submission to its success.
        digests: Digests of all artifacts.
        errors: Output of the failed submissions.
        log: Events, with seconds since the start.
        wrong: Problems; empty if the run passes.
    """

    seed: int | None
    drawn: list[str] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)
    submissions: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def verified_digests(root: str) -> tuple[dict[str, str], list[str]]:
    """Digests of all artifacts below a URI, and problems: damaged artifacts and leftover files."""
    digests, wrong = {}, []
    files = list(storage.list_files(root))
    directories = [storage.parent_of(name) for name in files if storage.name_of(name) in artifacts.RECORDS]
    for name in directories:
        try:
            digests[name] = artifacts.verify(f"{root}/{name}").digest
        except BoomError as error:
            wrong.append(str(error))
    wrong += [
        f"left over: {name}" for name in files
        if not name.startswith(tuple(f"{one}/" for one in directories)) and not name.endswith(KEPT)
        and not KEPT_BELOW.search(name)
    ]  # fmt: skip
    return digests, wrong


def vectors(root: str) -> pa.Table:
    """All rows of the embeddings, sorted by id."""
    names = [name for name in storage.list_files(f"{root}/vectors") if name.endswith(".parquet")]
    parts = []
    for name in names:
        with storage.open_input(f"{root}/vectors/{name}") as file:
            parts.append(pq.read_table(file))
    return pa.concat_tables(parts).sort_by("id")


def compare(outcome: Outcome, root: str, expected: Outcome, expected_root: str) -> None:
    """Add to an outcome its differences from the undisturbed one, and leftover files."""
    outcome.digests, problems = verified_digests(root)
    outcome.wrong += problems
    names = [name for name in expected.digests if "v0002" not in name and "core" not in name]
    names = list(expected.digests) if "update" in outcome.submissions else names
    for name in set(names) - {"vectors"}:
        if outcome.digests.get(name) != expected.digests[name]:
            outcome.wrong.append(f"{name}: {outcome.digests.get(name)}, undisturbed {expected.digests[name]}")
    ours, theirs = vectors(root), vectors(expected_root)
    if ours.drop(["embedding"]) != theirs.drop(["embedding"]):
        outcome.wrong.append("vectors: other rows than the undisturbed ones")
        return
    difference = np.abs(
        np.stack(ours["embedding"].to_numpy()) - np.stack(theirs["embedding"].to_numpy())
    ).max()
    if not difference <= MAX_DIFFERENCE:  # also for NaN
        outcome.wrong.append(f"vectors: {difference:g} from the undisturbed ones")


def summary(lines: list[str]) -> dict[str, Any]:
    """Statistics of outcomes, one JSON per line; each run is compared with the last undisturbed one."""
    calm: Any = None
    runs, struck, reruns, extra, wrong = 0, Counter[str](), Counter[int](), [], []
    for outcome in map(json.loads, lines):
        if outcome["seed"] is None:
            calm = outcome
            continue
        runs += 1
        struck.update(outcome["struck"])
        reruns[sum(outcome["submissions"].values()) - len(outcome["submissions"])] += 1
        extra.append(sum(seconds - calm["seconds"][job] for job, seconds in outcome["seconds"].items()))
        wrong += [f"seed {outcome['seed']}: {problem}" for problem in outcome["wrong"]]
    return {
        "runs": runs,
        "faults": dict(struck.most_common()),
        "runs_by_reruns": dict(sorted(reruns.items())),
        "undisturbed_seconds": calm["seconds"],
        "extra_seconds": {"median": statistics.median(extra), "most": max(extra)} if extra else {},
        "wrong": wrong,
    }

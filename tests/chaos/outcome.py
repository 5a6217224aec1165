"""What a disturbed run came to, beside the undisturbed one: nothing may be lost, and nothing left over."""

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

KEPT = ("run.json", "recipe.json", "evaluation.json", "update.json")  # beside the artifacts
MOST_APART = 1e-6  # of numbers of embeddings: their sums depend on an encoder's threads
KEPT_BELOW = re.compile(r"/(evaluation|drivers)/")


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        seed: None of the undisturbed run.
        drawn: The faults that were to strike.
        struck: The kinds of those that did; of the others the moment never came.
        submissions: Of each job.
        seconds: Of each job, from its first submission to its success.
        digests: Of everything that was made.
        errors: What jobs said that failed.
        log: What happened, with seconds since the start.
        wrong: What is not as it must be.
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


def made(root: str) -> tuple[dict[str, str], list[str]]:
    """Digests of all artifacts below a place, each checked, and what lies beside them."""
    digests, wrong = {}, []
    files = list(storage.list_files(root))
    directories = [
        name.removesuffix(f"/{artifacts.RECORD}") for name in files if name.endswith(artifacts.RECORD)
    ]
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
    for name in set(names) - {"vectors"}:
        if outcome.digests.get(name) != expected.digests[name]:
            outcome.wrong.append(f"{name}: {outcome.digests.get(name)}, undisturbed {expected.digests[name]}")
    ours, theirs = vectors(root), vectors(expected_root)
    if ours.drop(["embedding"]) != theirs.drop(["embedding"]):
        outcome.wrong.append("vectors: of other rows than the undisturbed ones")
        return
    apart = np.abs(np.stack(ours["embedding"].to_numpy()) - np.stack(theirs["embedding"].to_numpy())).max()
    if not apart <= MOST_APART:  # also if one is NaN
        outcome.wrong.append(f"vectors: {apart:g} from the undisturbed ones")


def summary(lines: list[str]) -> dict[str, Any]:
    """Figures of outcomes, one JSON a line; runs are compared with the undisturbed one before them."""
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

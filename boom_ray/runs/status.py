"""What is done, what is under way and what failed in a run, told from its storage alone.

Artifacts say what is done, checkpoints how far a bag came, and the files of drivers (`heartbeat`) who is at
work on the rest, or why nobody is.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from boom_ray import artifacts, storage
from boom_ray.artifacts import checkpoints
from boom_ray.artifacts.record import Record
from boom_ray.data.bags import BASELINE, name_of
from boom_ray.data.batches import num_steps
from boom_ray.errors import BoomError
from boom_ray.runs import versions
from boom_ray.runs.heartbeat import Said, age, read_drivers
from boom_ray.runs.identity import recipe_of
from boom_ray.runs.versions import FIRST_VERSION

State = Literal["done", "running", "waiting", "stopped", "failed", "lost"]
STYLES = {"done": "green", "running": "cyan", "waiting": "dim", "stopped": "yellow"}


@dataclass(frozen=True)
class Part:
    """One thing of a run; `facts` are for machines, `detail` says the same to people."""

    name: str
    state: State
    detail: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """A run.

    Attributes:
        state: Running if any driver is at work, else how the last one ended.
        reason: Why it is not well, or "".
        drivers: Those at work, else the last one.
        versions: Published versions.
        current: The version to serve.
        making: What each version is made of, in order; updates that are published are left out.
    """

    root: str
    state: State
    reason: str
    drivers: list[Part]
    versions: list[Part]
    current: str | None
    making: dict[str, list[Part]]

    @property
    def is_well(self) -> bool:
        """Whether all is done, or in progress without a failure."""
        return self.state in ("done", "running") and not self.reason

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, state and detail of everything, for people."""
        parts = [(part, "") for part in self.drivers]
        parts += [
            (part, "" if version == FIRST_VERSION else f"{version} ")
            for version, found in self.making.items()
            for part in found
        ]
        parts += [(part, "") for part in self.versions]
        told = [(f"{before}{part.name}", part.state, part.detail) for part, before in parts]
        return [("run", self.state, self.root), *told]

    def table(self) -> Table:
        """The rows for a terminal."""
        table = Table(box=None, show_header=False)
        for name, state, detail in self.rows():
            table.add_row(name, Text(state, STYLES.get(state, "red")), Text(detail))
        return table


def read(root: str, now: float | None = None) -> Status:
    """The status of `<storage>/<name>`.

    Args:
        now: Seconds since 1970; by default the present.

    Raises:
        BoomError: if there is no run, or its storage cannot be read.
    """
    if not storage.is_file(storage.join(root, "run.json")):
        raise BoomError(
            f"{root}: no run there. Give <storage>/<name>, with the name of a recipe that was run"
        )
    now = time.time() if now is None else now
    drivers = [said.at(now) for said in read_drivers(root)]
    published = versions.published(root)
    updates = storage.join(root, "updates")
    making = {FIRST_VERSION: _parts(root, FIRST_VERSION, published.get(FIRST_VERSION), drivers, now)}
    for version in storage.list_names(updates):
        if version not in published:
            making[version] = _parts(storage.join(updates, version), version, None, drivers, now)
    state, reason = _verdict(drivers, making, bool(published))
    current = versions.current(root) if published else None
    return Status(
        root=root,
        state=state,
        reason=reason,
        drivers=_drivers(drivers, now),
        versions=[_version(record, version == current) for version, record in published.items()],
        current=current,
        making=making,
    )


def _verdict(drivers: list[Said], making: dict[str, list[Part]], published: bool) -> tuple[State, str]:
    """State and reason of the whole."""
    at_work = [said for said in drivers if said.state == "running"]
    failed = [
        f"{part.name}: {part.detail}"
        for version in dict.fromkeys(said.version for said in at_work)
        for part in making.get(version, [])
        if part.state == "failed"
    ]
    if at_work:
        return "running", "; ".join(failed)
    if drivers:
        return drivers[-1].state, drivers[-1].message
    return ("done", "") if published else ("waiting", "no driver has begun")


def _drivers(drivers: list[Said], now: float) -> list[Part]:
    """Those at work, else the last; and what it means if two make the same."""
    at_work = [said for said in drivers if said.state == "running"]
    rivals = Counter(said.version for said in at_work)
    return [_driver(said, rivals[said.version] > 1, now) for said in at_work or drivers[-1:]]


def _driver(said: Said, has_rival: bool, now: float) -> Part:
    told = [f"{said.command} of {said.version}, {said.stage}"]
    told += [f"job {said.job}"] if said.job else []
    told += [f"{said.host}, process {said.pid}", f"heard of {age(now - said.time)} ago"]
    detail = ", ".join(told)
    if has_rival:
        detail += (
            "; another makes the same: each trains, the first to publish wins, the other fails. Stop one"
        )
    detail += f"; {said.message}" if said.message else ""
    facts = said.model_dump(exclude={"bags", "state"}) | {"seconds_silent": now - said.time}
    return Part("driver", said.state, detail, facts)


def _version(record: Record, is_current: bool) -> Part:
    told = ["current"] if is_current else []
    told += [f"made of {', '.join(parent.version for parent in record.parents)}", f"created {record.created}"]
    told += [f"job {record.job}"] if record.job else []
    facts = {"digest": record.digest, "created": record.created, "job": record.job}
    return Part(record.version, "done", ", ".join(told), facts)


def _parts(place: str, version: str, published: Record | None, drivers: list[Said], now: float) -> list[Part]:
    """What a version is made of, under the directory of its run or its update."""
    mine = [said for said in drivers if said.version == version]
    maker = next((said for said in reversed(mine) if said.state == "running"), mine[-1] if mine else None)
    corpus, drawn = (artifacts.read_record(storage.join(place, name)) for name in ("corpus", "bags"))
    parts = [
        _done("corpus", _corpus(corpus)) if corpus else _undone("corpus", "corpus", maker),
        _done("bags", _rows(drawn.config["rows"])) if drawn else _undone("bags", "bags", maker),
    ]
    recipe = recipe_of(place) if corpus and drawn else None
    if recipe and drawn:
        totals = {name_of(i): tasks.values() for i, tasks in enumerate(drawn.config["tasks"])}
        full = artifacts.read_record(storage.join(place, BASELINE))
        totals |= {BASELINE: full.config["tasks"][0].values()} if full else {}
        parts += [
            _bag(place, name, num_steps(sizes, recipe.train), maker, now) for name, sizes in totals.items()
        ]
    if published:
        parts.append(_done("merge", f"{published.config['method']}, {published.config['space']}"))
        means = versions.means_of(published)
        parts += [_done("evaluation", f"mean score {means}")] if published.metrics else []
    else:
        parts.append(_undone("merge", "merge", maker))
        if version != FIRST_VERSION or recipe is None or recipe.evaluate.data:
            parts.append(_undone("evaluation", "evaluate", maker))
    if maker and maker.stage == "compare":
        parts.append(Part("comparison", maker.state, maker.message))
    return parts


def _done(name: str, detail: str) -> Part:
    return Part(name, "done", detail)


def _undone(name: str, stage: str, maker: Said | None) -> Part:
    """Something not published: being made by the driver at its stage, where that one ended, or behind it."""
    if maker and (maker.stage, stage) == ("evaluate", "merge"):
        return Part(name, "done" if maker.state == "running" else "waiting")
    if maker is None or maker.stage != stage or maker.state == "done":
        return Part(name, "waiting")
    return Part(name, maker.state, maker.message)


def _corpus(record: Record) -> str:
    tasks = record.config["tasks"].values()
    rows, bad = (sum(task[key] for task in tasks) for key in ("rows", "quarantined"))
    return f"{rows:,} rows of {len(tasks)} tasks, {bad:,} in quarantine"


def _rows(counts: list[int]) -> str:
    return f"{', '.join(f'{count:,}' for count in counts)} rows"


def _bag(place: str, name: str, num_steps: int, maker: Said | None, now: float) -> Part:
    saved = _saved_step(storage.join(place, checkpoints.DIRECTORY, name))
    record = artifacts.read_record(storage.join(place, "models", name))
    if record:
        step, seconds = record.metrics["step"], record.metrics["seconds"]
        facts = {"step": step, "num_steps": step, "seconds": seconds, "job": record.job}
        return Part(name, "done", f"{record.config['rows']:,} rows, {step:,} steps in {age(seconds)}", facts)
    facts = {"num_steps": num_steps, "checkpoint_step": saved}
    told = maker.bags.get(name) if maker else None
    kept = f"complete checkpoint at step {saved:,} of {num_steps:,}" if saved else f"{num_steps:,} steps"
    if maker is None or maker.state == "done" or (told is None and (maker.state == "running" or not saved)):
        return Part(name, "waiting", kept, facts)
    if told is None:
        return Part(name, maker.state, kept, facts)
    facts |= {"step": told.step, "attempt": told.attempt}
    if told.failed:
        return Part(name, "failed", f"{told.failed}; {kept}", facts)
    facts["seconds_silent"] = now - told.time
    detail = f"step {told.step:,}, {kept}, attempt {told.attempt}, last step {age(now - told.time)} ago"
    return Part(name, maker.state, detail, facts)


def _saved_step(place: str) -> int:
    """Step of the newest complete checkpoint, 0 if there is none."""
    try:
        return next((state["step"] for _, state in checkpoints.find(place) if state), 0)
    except BoomError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return 0  # the bag was published while its checkpoints were read
        raise

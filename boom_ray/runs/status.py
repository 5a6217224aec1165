"""The status of a run from its storage alone: parts done, in progress, waiting or failed.

Artifacts show what is done, checkpoints how far a bag is, and heartbeats which driver works on the rest, or
why none does.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from boom_ray import artifacts, storage
from boom_ray.artifacts import BagsRecord, CorpusRecord, ModelRecord, checkpoints
from boom_ray.data.bags import BASELINE, name_of
from boom_ray.data.batches import num_steps
from boom_ray.errors import BoomError, NotFoundError
from boom_ray.runs import versions
from boom_ray.runs.heartbeat import Heartbeat, age, read_heartbeats
from boom_ray.runs.identity import is_run, recipe_of
from boom_ray.runs.layout import FIRST_VERSION, Layout

State = Literal["done", "running", "waiting", "stopped", "failed", "lost"]
STYLES = {"done": "green", "running": "cyan", "waiting": "dim", "stopped": "yellow"}


@dataclass(frozen=True)
class Part:
    """One part of a run; `facts` are for programs, `detail` is the same as text."""

    name: str
    state: State
    detail: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunStatus:
    """The status of a run.

    Attributes:
        state: Running if any driver is running, else the state in which the last one ended.
        reason: Why the run is not well, or "".
        drivers: Those at work and those that wait for them, else the last one.
        versions: Published versions.
        current: The version to serve.
        making: The parts of each version, in order; published updates are left out.
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
        """Whether everything is done, or in progress without a failure."""
        return self.state in ("done", "running") and not self.reason

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, state and detail of every part."""
        parts = [(part, "") for part in self.drivers]
        parts += [
            (part, "" if version == FIRST_VERSION else f"{version} ")
            for version, found in self.making.items()
            for part in found
        ]
        parts += [(part, "") for part in self.versions]
        lines = [(f"{prefix}{part.name}", part.state, part.detail) for part, prefix in parts]
        return [("run", self.state, self.root), *lines]

    def table(self) -> Table:
        """The rows for a terminal."""
        table = Table(box=None, show_header=False)
        for name, state, detail in self.rows():
            table.add_row(name, Text(state, STYLES.get(state, "red")), Text(detail))
        return table


def read(root: str, now: float | None = None) -> RunStatus:
    """The status of `<storage>/<name>`.

    Args:
        now: Seconds since 1970; by default the present.

    Raises:
        NotFoundError: if there is no run.
        StorageError: if its storage cannot be read.
    """
    if not is_run(root):
        raise NotFoundError(
            f"{root}: no run there. Give <storage>/<name>, with the name of a recipe that was run"
        )
    now, layout = time.time() if now is None else now, Layout(root)
    beats = [beat.at(now) for beat in read_heartbeats(root)]
    published = versions.published(root)
    making = {FIRST_VERSION: _parts(layout, FIRST_VERSION, published.get(FIRST_VERSION), beats, now)}
    for version in storage.list_names(layout.updates):
        if version not in published:
            making[version] = _parts(layout.update(version), version, None, beats, now)
    state, reason = _verdict(beats, making, bool(published))
    current = versions.current(root) if published else None
    return RunStatus(
        root=root,
        state=state,
        reason=reason,
        drivers=_drivers(beats, now),
        versions=[_version(record, version == current) for version, record in published.items()],
        current=current,
        making=making,
    )


def _verdict(beats: list[Heartbeat], making: dict[str, list[Part]], published: bool) -> tuple[State, str]:
    """State and reason of the whole run."""
    running = [beat for beat in beats if beat.state == "running"]
    failed = [
        f"{part.name}: {part.detail}"
        for version in dict.fromkeys(beat.version for beat in running)
        for part in making.get(version, [])
        if part.state == "failed"
    ]
    if running:
        return "running", "; ".join(failed)
    if beats:
        return beats[-1].state, beats[-1].message
    return ("done", "") if published else ("waiting", "no driver has begun")


def _drivers(beats: list[Heartbeat], now: float) -> list[Part]:
    """The drivers at work and those that wait for them, else the last one."""
    return [_driver(beat, now) for beat in [beat for beat in beats if beat.is_active] or beats[-1:]]


def _driver(beat: Heartbeat, now: float) -> Part:
    parts = [f"{beat.command} of {beat.version}, {beat.stage}"]
    parts += ["waits for the other"] if beat.state == "waiting" else []
    parts += [f"job {beat.job}"] if beat.job else []
    parts += [f"{beat.host}, process {beat.pid}", f"heartbeat {age(now - beat.time)} ago"]
    detail = ", ".join(parts)
    detail += f"; {beat.message}" if beat.message else ""
    facts = beat.model_dump(exclude={"bags", "state"}) | {"seconds_silent": now - beat.time}
    return Part("driver", beat.state, detail, facts)


def _version(record: ModelRecord, is_current: bool) -> Part:
    parts = ["current"] if is_current else []
    parts += [f"made from {', '.join(parent.version for parent in record.parents)}"]
    parts += [f"created {record.created}"]
    parts += [f"job {record.job}"] if record.job else []
    facts = {"digest": record.digest, "created": record.created, "job": record.job}
    return Part(record.version, "done", ", ".join(parts), facts)


def _parts(
    layout: Layout, version: str, published: ModelRecord | None, beats: list[Heartbeat], now: float
) -> list[Part]:
    """The parts of a version, in the layout of its run or its update."""
    mine = [beat for beat in beats if beat.version == version]
    maker = next((beat for beat in reversed(mine) if beat.state == "running"), mine[-1] if mine else None)
    corpus = artifacts.find(layout.corpus, CorpusRecord)
    drawn = artifacts.find(layout.bags, BagsRecord)
    parts = [
        _done("corpus", _corpus(corpus)) if corpus else _undone("corpus", "corpus", maker),
        _done("bags", _rows(drawn.config.rows)) if drawn else _undone("bags", "bags", maker),
    ]
    recipe = recipe_of(layout.root) if corpus and drawn else None
    if recipe and drawn:
        for index, (bag, tasks) in enumerate(zip(recipe.bags.ratios, drawn.config.tasks, strict=True)):
            steps = num_steps(tasks.values(), recipe.train_of(index))
            part = _bag(layout, name_of(index), steps, maker, now)
            parts.append(part if bag.is_plain else replace(part, detail=f"{part.detail}; {bag.describe()}"))
        if full := artifacts.find(layout.baseline, BagsRecord):
            steps = num_steps(full.config.tasks[0].values(), recipe.train)
            parts.append(_bag(layout, BASELINE, steps, maker, now))
    if published:
        merge = published.config.merge
        parts.append(_done("merge", str(merge or "")))
        means = versions.means_of(published)
        parts += [_done("evaluation", f"mean score {means}")] if means != "-" else []
    else:
        parts.append(_undone("merge", "merge", maker))
        if version != FIRST_VERSION or recipe is None or recipe.evaluate.data:
            parts.append(_undone("evaluation", "evaluate", maker))
    if maker and maker.stage == "compare":
        parts.append(Part("comparison", maker.state, maker.message))
    return parts


def _done(name: str, detail: str) -> Part:
    return Part(name, "done", detail)


def _undone(name: str, stage: str, maker: Heartbeat | None) -> Part:
    """A part without an artifact: in progress or ended at its driver's stage, else waiting."""
    if maker and (maker.stage, stage) == ("evaluate", "merge"):
        return Part(name, "done" if maker.state == "running" else "waiting")
    if maker is None or maker.stage != stage or maker.state == "done":
        return Part(name, "waiting")
    return Part(name, maker.state, maker.message)


def _corpus(record: CorpusRecord) -> str:
    tasks = record.config.tasks.values()
    rows, quarantined = sum(task.rows for task in tasks), sum(task.quarantined for task in tasks)
    return f"{rows:,} rows of {len(tasks)} tasks, {quarantined:,} in quarantine"


def _rows(counts: list[int]) -> str:
    return f"{', '.join(f'{count:,}' for count in counts)} rows"


def _bag(layout: Layout, name: str, num_steps: int, maker: Heartbeat | None, now: float) -> Part:
    saved = _saved_step(layout.checkpoints(name))
    record = artifacts.find(layout.model(name), ModelRecord)
    if record:
        return _trained(name, record)
    facts = {"num_steps": num_steps, "checkpoint_step": saved}
    progress = maker.bags.get(name) if maker else None
    kept = f"complete checkpoint at step {saved:,} of {num_steps:,}" if saved else f"{num_steps:,} steps"
    ended = maker is None or maker.state == "done"
    if maker is None or ended or (progress is None and (maker.state == "running" or not saved)):
        return Part(name, "waiting", kept, facts)
    if progress is None:
        return Part(name, maker.state, kept, facts)
    facts |= {"step": progress.step, "attempt": progress.attempt, "num_ranks": progress.num_ranks}
    if progress.failed:
        return Part(name, "failed", f"{progress.failed}; {kept}", facts)
    silence = now - progress.time
    attempt = f"attempt {progress.attempt} on {progress.num_ranks} rank{'s' * (progress.num_ranks != 1)}"
    detail = f"step {progress.step:,}, {kept}, {attempt}, last step {age(silence)} ago"
    return Part(name, maker.state, detail, facts | {"seconds_silent": silence})


def _trained(name: str, record: ModelRecord) -> Part:
    trained = record.metrics.training
    if trained is None:
        return Part(name, "done")
    facts = {"step": trained.step, "num_steps": trained.step, "seconds": trained.seconds, "job": record.job}
    detail = f"{record.config.rows or 0:,} rows, {trained.step:,} steps in {age(trained.seconds)}"
    return Part(name, "done", detail, facts)


def _saved_step(directory: str) -> int:
    try:
        return checkpoints.newest_step(directory)
    except BoomError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return 0  # the bag was published while its checkpoints were read
        raise

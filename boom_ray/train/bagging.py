"""M bags, M trainers: each is launched by Ray Train as its turn comes, and shows how far it is."""

import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from typing import Any, cast

import ray
import ray.exceptions
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from boom_ray import artifacts, storage
from boom_ray.artifacts import BagsRecord, CorpusRecord, Parent, checkpoints
from boom_ray.data import bags as bag_manifests
from boom_ray.data.bags import BASELINE
from boom_ray.data.batches import num_steps
from boom_ray.errors import BoomError
from boom_ray.recipe import Bags, Recipe, identity
from boom_ray.runs.heartbeat import BagProgress, Driver
from boom_ray.runs.layout import Layout
from boom_ray.runtime.cluster import here
from boom_ray.runtime.console import console
from boom_ray.runtime.progress import Progress
from boom_ray.train.board import BagState, ProgressBoard
from boom_ray.train.cluster import await_room, capacity, resources
from boom_ray.train.job import BagJob
from boom_ray.train.schedule import Schedule, best, longest_first, render

POLL_SECONDS = 0.5


def train_bags(
    recipe: Recipe,
    corpus: CorpusRecord,
    bags: BagsRecord,
    base: Parent,
    driver: Driver,
    only: int | None = None,
    full: BagsRecord | None = None,
) -> list[str]:
    """Train every bag that is not published yet.

    Args:
        corpus: Record of the corpus artifact.
        bags: Record of the bag manifests.
        base: The base model, by content.
        driver: Is told how far the bags are.
        only: Index of the single bag to train.
        full: Record of a manifest of the full corpus, to train a model on that as well: the baseline.

    Returns:
        URIs of the models of all bags asked for, in order; last that of the baseline, if asked for.

    Raises:
        BoomError: if the cluster has no room for a bag, a published model was made otherwise, or bags
            failed; the models of the others are kept, and a rerun trains only what is missing.
    """
    indices = range(len(recipe.bags.ratios)) if only is None else [only]
    board: Any = ProgressBoard.options(scheduling_strategy=here()).remote()  # type: ignore[attr-defined]
    jobs = [make_job(recipe, index, corpus, bags, base, board) for index in indices]
    if full is not None:
        jobs.append(_baseline_job(recipe, corpus, full, base, board))
    missing = [job for job in jobs if not _is_published(job)]
    if missing:
        schedule = plan_bags(recipe, missing, await_room(recipe.train.execution))
        console.print(f"schedule: {len(missing)} bags, longest first")
        names, steps = [job.name for job in missing], [job.steps for job in missing]
        for line in render(schedule, names, steps):
            console.print(f"  {line}")
        ordered = [replace(missing[bag], num_ranks=schedule.ranks[bag]) for bag in schedule.order]
        _run_all(ordered, board, driver)
    if only is None:
        layout = Layout(recipe.root)
        for scratch in (layout.all_checkpoints, layout.ray_train):
            storage.delete_tree(scratch)
    return [job.target for job in jobs]


def make_job(
    recipe: Recipe, index: int, corpus: CorpusRecord, bags: BagsRecord, base: Parent, board: Any
) -> BagJob:
    """What the ranks of one bag need to know."""
    name, layout = bag_manifests.name_of(index), Layout(recipe.root)
    made_from = [bags.fingerprint, index, base.digest, identity(recipe.base_model), identity(recipe.train)]
    return BagJob(
        recipe=recipe,
        index=index,
        name=name,
        rows=bags.config.rows[index],
        steps=num_steps(bags.config.tasks[index].values(), recipe.train),
        num_ranks=1,
        corpus=layout.corpus,
        bags=layout.bags,
        checkpoints=layout.checkpoints(name),
        target=layout.model(name),
        fingerprint=artifacts.fingerprint(made_from),
        parents=[base, corpus.as_parent(), bags.as_parent()],
        submission_id=artifacts.submission_id(),
        board=board,
    )


def _baseline_job(recipe: Recipe, corpus: CorpusRecord, full: BagsRecord, base: Parent, board: Any) -> BagJob:
    """The full corpus as a bag of its own, beside the others."""
    layout = Layout(recipe.root)
    whole = recipe.model_copy(update={"bags": Bags(ratios=[100], seed=recipe.bags.seed)})
    return replace(
        make_job(whole, 0, corpus, full, base, board),
        name=BASELINE,
        bags=layout.baseline,
        checkpoints=layout.checkpoints(BASELINE),
        target=layout.model(BASELINE),
    )


def _is_published(job: BagJob) -> bool:
    record = artifacts.read_record(job.target)
    if record is not None and record.fingerprint != job.fingerprint:
        raise BoomError(
            f"{job.target}: was made from another base model, corpus or recipe. "
            "Give the recipe another name, or delete it"
        )
    return record is not None


def plan_bags(recipe: Recipe, jobs: Sequence[BagJob], room: int) -> Schedule:
    """When each bag runs and on how many ranks; one that has a checkpoint keeps the ranks that saved it."""
    steps, wanted = [job.steps for job in jobs], recipe.train.execution.num_workers
    if wanted != "auto":
        return longest_first(steps, [wanted] * len(jobs), room)
    ranks = best(steps, room, most=recipe.train.batch_size).ranks
    for index, job in enumerate(jobs):
        begun = checkpoints.newest(job.checkpoints)
        if begun is not None and begun[1]["num_ranks"] <= room:
            ranks[index] = begun[1]["num_ranks"]
    return longest_first(steps, ranks, room)


def _run_all(jobs: list[BagJob], board: Any, driver: Driver) -> None:
    """Run the trainers in order, and show how far they are until the last has ended.

    One more trainer than fits waits in line: it is up when a share becomes free, and an autoscaler sees that
    more is wanted.
    """
    waiting, running = list(jobs), dict[Future[str | None], BagJob]()
    failures: dict[str, str] = {}
    with ThreadPoolExecutor(len(jobs)) as threads, Progress() as progress:
        monitor = _Monitor(jobs, board, progress, driver)
        while waiting or running:
            room = capacity(jobs[0].recipe.train.execution)
            while waiting and sum(job.num_ranks for job in running.values()) <= room:
                job = waiting.pop(0)
                running[threads.submit(_fit, job)] = job
            done, _ = wait(running, POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                job, message = running.pop(future), future.result()
                # a rank that was cut off and taken for dead may have published before its successor
                if message and not _is_published(job):
                    failures[job.name] = message
            monitor.show(room, failures)
    if failures:
        kept = len(jobs) - len(failures)
        raise BoomError.of(
            [f"{name}: {message}" for name, message in sorted(failures.items())],
            f"{len(failures)} of {len(jobs)} bags failed; {kept} are published and kept. "
            "Run the same command again to train only what is missing:"
        )  # fmt: skip


class _Monitor:
    """What a person sees of the bags: a line for each, one for all, and warnings as they come."""

    def __init__(self, jobs: list[BagJob], board: Any, progress: Progress, driver: Driver) -> None:
        self.jobs, self.board, self.progress, self.driver = jobs, board, progress, driver
        self.num_warnings = 0

    def show(self, room: int, failures: dict[str, str]) -> None:
        """Read the board, print what is new, and let the driver say the same in storage."""
        states, warnings = ray.get(self.board.read.remote())
        self.driver.show(_said(states, failures))
        for text in warnings[self.num_warnings :]:
            console.print(f"warning: {text}")
        self.num_warnings = len(warnings)
        for name, state in sorted(states.items()):
            left = f"{state.seconds_left:,.0f} s left" if state.seconds_left else "done"
            note = f"loss {state.loss:.4f}  {state.tokens_per_second:,.0f} tokens/s  {left}"
            self.progress.update(name, state.step, state.num_steps, note)
        if states and len(self.jobs) > 1:
            completed, total = (
                sum(state.step for state in states.values()),
                sum(job.steps for job in self.jobs),
            )
            ends = time.time() + seconds_left(self.jobs, states, room)
            self.progress.update(
                "all bags", completed, total, time.strftime("end %H:%M:%S", time.localtime(ends))
            )


def _said(states: dict[str, BagState], failures: dict[str, str]) -> dict[str, BagProgress]:
    said = {name: BagProgress(**asdict(state)) for name, state in states.items()}
    for name, reason in failures.items():
        said[name] = said.get(name, BagProgress()).model_copy(update={"failed": reason})
    return said


def seconds_left(jobs: Sequence[BagJob], states: dict[str, BagState], room: int) -> float:
    """Until the last bag ends, if those that wait are as fast as those that have begun."""
    ranks = {job.name: job.num_ranks for job in jobs}
    paces = [
        state.seconds_left / (state.num_steps - state.step) * ranks[name]
        for name, state in states.items()
        if state.step < state.num_steps
    ]
    pace = sum(paces) / len(paces) if paces else 0.0
    work = [
        states[job.name].seconds_left * job.num_ranks if job.name in states else pace * job.steps
        for job in jobs
    ]
    return longest_first(work, [min(job.num_ranks, max(1, room)) for job in jobs], max(1, room)).end


def _fit(job: BagJob) -> str | None:
    """Run one trainer to its end; returns why it failed, or None."""
    execution = job.recipe.train.execution
    trainer = TorchTrainer(
        cast(Any, _train_bag),
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=job.num_ranks,
            use_gpu=execution.use_gpu,
            resources_per_worker=resources(execution),
        ),
        torch_config=TorchConfig(timeout_s=execution.collective_timeout_s),
        # A name of its own: under a known one Ray Train resumes silently from a snapshot that it
        # rewrites in place; our checkpoints are complete or invisible instead.
        run_config=RunConfig(
            name=f"{job.name}-{uuid.uuid4().hex[:8]}",
            storage_path=Layout(job.recipe.root).ray_train,
            failure_config=FailureConfig(max_failures=execution.max_failures),
        ),
    )
    try:
        result: Any = trainer.fit()
        return result.return_value
    except (ray.train.TrainingFailedError, ray.exceptions.RayError, ValueError, OSError) as error:
        return "; ".join(_reasons(error))


def _train_bag(config: dict[str, Any]) -> str | None:
    """What every rank runs; only ranks pay for the import of transformers and DeepSpeed."""
    from boom_ray.train.worker import train_bag

    return train_bag(config)


def _reasons(error: Exception) -> Iterator[str]:
    """What every failed rank raised, once: the end of a traceback, or the heading of Ray's advice."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    yield from dict.fromkeys(map(_reason, failures.values()))


def _reason(failure: Exception) -> str:
    lines = str(failure).strip().splitlines()
    return lines[0 if isinstance(failure, ray.exceptions.OutOfMemoryError) else -1]

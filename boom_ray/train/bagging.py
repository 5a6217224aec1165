"""The training of all bags: one Ray Train trainer per bag, started in the order of the schedule."""

import logging
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

from boom_ray import artifacts, storage
from boom_ray.artifacts import BagsRecord, CorpusRecord, Parent
from boom_ray.data import bags as bag_manifests
from boom_ray.data.bags import BASELINE
from boom_ray.data.batches import num_steps
from boom_ray.errors import BoomError, ConflictError
from boom_ray.recipe import Bag, Bags, Recipe, identity
from boom_ray.runs.driver import Driver
from boom_ray.runs.layout import Layout
from boom_ray.runtime.cluster import here
from boom_ray.runtime.progress import Progress
from boom_ray.train import trainer_task
from boom_ray.train.bag_job import BagJob
from boom_ray.train.bag_monitor import BagMonitor
from boom_ray.train.capacity import await_capacity, rank_capacity
from boom_ray.train.progress_actor import ProgressActor
from boom_ray.train.ray_internals import keep_coordinator_here
from boom_ray.train.rehearsal_task import rehearse_new
from boom_ray.train.schedule import Schedule, render, schedule_for

logger = logging.getLogger(__name__)
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
        base: Identity of the base model.
        driver: Heartbeat of this process, which stores the progress of the bags.
        only: Index of the only bag to train; by default all.
        full: Record of a manifest of the full corpus, to train the baseline as well.

    Returns:
        URIs of the models of the requested bags in order, followed by that of the baseline.

    Raises:
        ClusterError: if the cluster is too small for a bag.
        InputError: if the base model cannot be trained, as its rehearsal found.
        ConflictError: if a published model was made from another input.
        BoomError: if bags failed. The models of the others are kept; a rerun trains only those missing.
    """
    indices = range(len(recipe.bags.ratios)) if only is None else [only]
    # On the driver's node, so that the loss of another node does not interrupt the progress.
    actor: Any = ProgressActor.options(scheduling_strategy=here()).remote()  # type: ignore[attr-defined]
    jobs = [make_job(recipe, index, corpus, bags, base, actor) for index in indices]
    if full is not None:
        jobs.append(_baseline_job(recipe, corpus, full, base, actor))
    missing = [job for job in jobs if not _is_published(job)]
    if missing:
        capacity = _await_capacity(recipe, missing)
        rehearse_new(missing)
        schedule = plan_bags(recipe, missing, capacity)
        logger.info("schedule: %d bags, longest first", len(missing))
        for line in render(schedule, [job.name for job in missing], [job.steps for job in missing]):
            logger.info("  %s", line)
        ordered = [replace(missing[bag], num_ranks=schedule.ranks[bag]) for bag in schedule.order]
        _run_all(ordered, actor, driver)
    if only is None:
        layout = Layout(recipe.root)
        for directory in (layout.all_checkpoints, layout.ray_train):
            storage.delete_tree(directory)
    return [job.target for job in jobs]


def make_job(
    recipe: Recipe, index: int, corpus: CorpusRecord, bags: BagsRecord, base: Parent, progress_actor: Any
) -> BagJob:
    """The job of one bag, on one rank until it is scheduled."""
    name, layout, train = bag_manifests.name_of(index), Layout(recipe.root), recipe.train_of(index)
    made_from = [bags.fingerprint, index, base.digest, identity(recipe.base_model), identity(train)]
    return BagJob(
        recipe=recipe.model_copy(update={"train": train}),
        index=index,
        name=name,
        rows=bags.config.rows[index],
        steps=num_steps(bags.config.tasks[index].values(), train),
        num_ranks=1,
        corpus=layout.corpus,
        bags=layout.bags,
        checkpoints=layout.checkpoints(name),
        target=layout.model(name),
        fingerprint=artifacts.fingerprint(made_from),
        parents=[base, corpus.as_parent(), bags.as_parent()],
        submission_id=artifacts.submission_id(),
        progress_actor=progress_actor,
    )


def _baseline_job(
    recipe: Recipe, corpus: CorpusRecord, full: BagsRecord, base: Parent, progress_actor: Any
) -> BagJob:
    """The job of the baseline, a bag with the full corpus."""
    layout = Layout(recipe.root)
    whole = recipe.model_copy(update={"bags": Bags(ratios=[Bag(ratio=100)], seed=recipe.bags.seed)})
    return replace(
        make_job(whole, 0, corpus, full, base, progress_actor),
        name=BASELINE,
        bags=layout.baseline,
        checkpoints=layout.checkpoints(BASELINE),
        target=layout.model(BASELINE),
    )


def _is_published(job: BagJob) -> bool:
    record = artifacts.read_record(job.target)
    if record is not None and record.fingerprint != job.fingerprint:
        raise ConflictError(
            f"{job.target}: made from another base model, corpus or recipe. "
            "Give the recipe another name, or delete this model"
        )
    return record is not None


def _await_capacity(recipe: Recipe, jobs: Sequence[BagJob]) -> int:
    """Wait for the ranks that the bags can use, of those that may fit; returns their number."""
    execution = recipe.train.execution
    most = rank_capacity(execution)
    if execution.num_workers != "auto" or not most:
        return await_capacity(execution)
    return await_capacity(execution, most_at_once(plan_bags(recipe, jobs, most)))


def most_at_once(schedule: Schedule) -> int:
    """The largest number of ranks that train at the same time."""
    bags = list(zip(schedule.ranks, schedule.spans, strict=True))
    return max(sum(ranks for ranks, (start, end) in bags if start <= now < end) for _, (now, _) in bags)


def plan_bags(recipe: Recipe, jobs: Sequence[BagJob], capacity: int) -> Schedule:
    """Schedule the bags; with `num_workers: auto`, the numbers of ranks that end the last one earliest."""
    return schedule_for([job.steps for job in jobs], recipe.train, capacity)


def _run_all(jobs: list[BagJob], progress_actor: Any, driver: Driver) -> None:
    """Run all bags in order and show their progress.

    Raises:
        BoomError: if bags failed, once all have ended.
    """
    waiting, running = list(jobs), dict[Future[BoomError | None], BagJob]()
    failures: dict[str, BoomError] = {}
    keep_coordinator_here()
    with ThreadPoolExecutor(len(jobs)) as threads, Progress() as progress:
        monitor = BagMonitor(jobs, progress_actor, progress, driver)
        while waiting or running:
            capacity = rank_capacity(jobs[0].recipe.train.execution)
            # One trainer more than fits is started. It waits in Ray's queue, so that it begins as soon as
            # ranks become free. Trainers that wait for nodes are the demand that the autoscaler sees.
            while waiting and sum(job.num_ranks for job in running.values()) <= capacity:
                job = waiting.pop(0)
                running[threads.submit(trainer_task.fit, job)] = job
            done, _ = wait(running, POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                job, error = running.pop(future), future.result()
                # A disconnected rank that Ray considers dead may still have published before its successor.
                if error is not None and not _is_published(job):
                    failures[job.name] = error
            monitor.update(capacity, failures)
    if failures:
        raise _combined(failures, len(jobs))


def _combined(failures: dict[str, BoomError], num_bags: int) -> BoomError:
    """One error that lists all failed bags, of their common class."""
    classes = {type(error) for error in failures.values()}
    error_class = classes.pop() if len(classes) == 1 else BoomError
    return error_class.of(
        [f"{name}: {error}" for name, error in sorted(failures.items())],
        f"{len(failures)} of {num_bags} bags failed; {num_bags - len(failures)} are published and kept. "
        "Run the same command again to train only those missing:",
    )

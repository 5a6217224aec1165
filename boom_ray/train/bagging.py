"""M bags, M trainers: all start at once, and take their turn on the cluster longest first."""

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, cast

import ray
import ray.exceptions
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from boom_ray import artifact, storage
from boom_ray.artifact import Parent, Record
from boom_ray.data import bags as bag_manifests
from boom_ray.errors import BoomError
from boom_ray.progress import Progress
from boom_ray.recipe import Recipe, TrainExecution, identity
from boom_ray.train.job import BagJob

POLL_SECONDS = 0.5
CHECKPOINTS, RAY_TRAIN = SCRATCH = "checkpoints", "ray_train"


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Where the first rank of every bag writes how far it is, for the driver to read."""

    def __init__(self) -> None:
        self.states: dict[str, tuple[int, int, str]] = {}

    def tell(self, name: str, completed: int, total: int, note: str) -> None:
        """Note the state of one bag."""
        self.states[name] = completed, total, note

    def read(self) -> dict[str, tuple[int, int, str]]:
        """The states of all bags that have begun."""
        return self.states


def model_uri(recipe: Recipe, name: str) -> str:
    """Where the model of a bag, or a merged version, is published."""
    return storage.join(recipe.root, "models", name)


def train_bags(
    recipe: Recipe, corpus: Record, bags: Record, base: Parent, only: int | None = None
) -> list[str]:
    """Train every bag that is not published yet.

    Args:
        corpus: Record of the corpus artifact.
        bags: Record of the bag manifests.
        base: The base model, by content.
        only: Index of the single bag to train.

    Returns:
        URIs of the models of all bags asked for, in order.

    Raises:
        BoomError: if the cluster has no room for a bag, a published model was made otherwise, or bags
            failed; the models of the others are kept, and a rerun trains only what is missing.
    """
    indices = range(len(recipe.bags.ratios)) if only is None else [only]
    board: Any = ProgressBoard.remote()  # type: ignore[attr-defined]
    jobs = [_job(recipe, index, corpus, bags, base, board) for index in indices]
    missing = [job for job in jobs if not _is_published(job)]
    if missing:
        _await_room(recipe.train.execution)
        _run_all(sorted(missing, key=lambda job: -job.rows), board)
    if only is None:
        for scratch in SCRATCH:
            storage.delete_tree(storage.join(recipe.root, scratch))
    return [job.target for job in jobs]


def _job(recipe: Recipe, index: int, corpus: Record, bags: Record, base: Parent, board: Any) -> BagJob:
    name = bag_manifests.name_of(index)
    made_from = [bags.fingerprint, index, base.digest, identity(recipe.base_model), identity(recipe.train)]
    return BagJob(
        recipe=recipe,
        index=index,
        name=name,
        rows=bags.config["rows"][index],
        corpus=storage.join(recipe.root, "corpus"),
        bags=storage.join(recipe.root, "bags"),
        checkpoints=storage.join(recipe.root, CHECKPOINTS, name),
        target=model_uri(recipe, name),
        fingerprint=artifact.fingerprint(made_from),
        parents=[base, corpus.as_parent(), bags.as_parent()],
        board=board,
    )


def _is_published(job: BagJob) -> bool:
    record = artifact.read_record(job.target)
    if record is not None and record.fingerprint != job.fingerprint:
        raise BoomError(
            f"{job.target}: was made from another base model, corpus or recipe. "
            "Give the recipe another name, or delete it"
        )
    return record is not None


def resources(execution: TrainExecution) -> dict[str, float]:
    """Ray resources of one rank: those of the recipe, else a GPU, or one CPU."""
    default = {"GPU": 1.0, "CPU": 1.0} if execution.use_gpu else {"CPU": 1.0}
    return default | execution.resources_per_worker


def _await_room(execution: TrainExecution) -> None:
    """Wait until the cluster could hold one bag; nodes may still be joining."""
    wanted = {key: amount * execution.num_workers for key, amount in resources(execution).items()}
    deadline = time.monotonic() + execution.start_timeout_s
    while True:
        present = ray.cluster_resources()
        if all(present.get(key, 0) >= amount for key, amount in wanted.items()):
            return
        if time.monotonic() > deadline:
            there = {key: present.get(key, 0) for key in wanted}
            raise BoomError(
                f"the cluster has no room for one bag after {execution.start_timeout_s:g} s: asked {wanted} "
                f"({execution.num_workers} workers), there is {there}. Lower train.execution.num_workers or "
                "resources_per_worker, or add nodes"
            )
        time.sleep(1)


def _run_all(jobs: list[BagJob], board: Any) -> None:
    """Run all trainers side by side, and show how far they are until the last has ended."""
    with ThreadPoolExecutor(len(jobs)) as threads, Progress() as progress:
        running = {threads.submit(_fit, job): job for job in jobs}
        pending: set[Future[str | None]] = set(running)
        while pending:
            _, pending = wait(pending, POLL_SECONDS)
            states: dict[str, tuple[int, int, str]] = ray.get(board.read.remote())
            for name, (completed, total, note) in sorted(states.items()):
                progress.update(name, completed, total, note)
    failures = [f"{job.name}: {message}" for future, job in running.items() if (message := future.result())]
    if failures:
        done = len(jobs) - len(failures)
        raise BoomError.of(
            sorted(failures), f"{len(failures)} of {len(jobs)} bags failed; {done} are published and kept. "
            "Run the same command again to train only what is missing:"
        )  # fmt: skip


def _fit(job: BagJob) -> str | None:
    """Run one trainer to its end; returns why it failed, or None."""
    execution = job.recipe.train.execution
    trainer = TorchTrainer(
        cast(Any, _train_bag),
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=execution.num_workers,
            use_gpu=execution.use_gpu,
            resources_per_worker=resources(execution),
        ),
        torch_config=TorchConfig(timeout_s=execution.collective_timeout_s),
        # A name of its own: under a known one Ray Train resumes silently from a snapshot that it
        # rewrites in place; our checkpoints are sealed instead.
        run_config=RunConfig(
            name=f"{job.name}-{uuid.uuid4().hex[:8]}",
            storage_path=storage.join(job.recipe.root, RAY_TRAIN),
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
    """The last line of what every failed rank raised, once."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    yield from dict.fromkeys(str(failure).strip().splitlines()[-1] for failure in failures.values())

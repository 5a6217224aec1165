"""The rehearsal as a task of Ray, on the resources of a rank, once per run and kind of bag."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import ray

from boom_ray import artifacts, storage
from boom_ray.runs.layout import Layout
from boom_ray.runtime.cluster import ProcessLost, result_of
from boom_ray.train.bag_job import BagJob
from boom_ray.train.capacity import task_options

#: Settings that have no effect on whether a model can be trained.
WITHOUT_EFFECT = {"epochs", "max_steps", "learning_rate", "average", "seed"}
logger = logging.getLogger(__name__)


def rehearse_new(jobs: Sequence[BagJob]) -> None:
    """Rehearse one bag of each kind: bags with equal settings, apart from `WITHOUT_EFFECT`, are of one kind.

    Kinds that the run has rehearsed are not rehearsed again. A worker with too little memory does not refuse
    the run: ranks share what the rehearsal holds alone.

    Raises:
        BoomError: if the base model cannot be trained with this recipe, naming the key to change.
    """
    uri = Layout(jobs[0].recipe.root).rehearsal
    done = storage.read_bytes(uri).decode().split() if storage.is_file(uri) else []
    for key, job in {_key(job): job for job in jobs}.items():
        if key not in done and _is_rehearsed(job):
            done.append(key)
            storage.write_bytes(uri, "\n".join(done).encode())


def _key(job: BagJob) -> str:
    """Identity of all that the rehearsal of a bag depends on."""
    recipe = job.recipe
    made_from = [
        [parent.digest for parent in job.parents],
        recipe.base_model.model_dump(mode="json"),
        recipe.train.model_dump(mode="json", exclude=WITHOUT_EFFECT),
        recipe.data.model_dump(mode="json"),
        artifacts.libraries(),
    ]
    return artifacts.fingerprint(made_from)


def _is_rehearsed(job: BagJob) -> bool:
    """Rehearse a bag on the resources of a rank; False if the worker has too little memory for it."""
    reference = (
        ray.remote(_rehearse)
        .options(max_retries=0, **task_options(job.recipe.train.execution))
        .remote(replace(job, progress_actor=None))
    )
    try:
        outcome = result_of(reference)
    except ProcessLost as error:
        outcome = error.reason
    if isinstance(outcome, str):
        logger.warning("rehearsal: ended early, and training begins without it: %s", outcome)
        return False
    logger.info("rehearsal: the base model can be trained, %.1f s", outcome)
    return True


def _rehearse(job: BagJob) -> float | str:
    """The seconds that the rehearsal took, or the reason why this worker has too little memory for it."""
    import torch

    from boom_ray.errors import first_line
    from boom_ray.train.rehearsal import rehearse

    try:
        return rehearse(job, "cuda" if job.recipe.train.execution.use_gpu else "cpu")
    except (torch.OutOfMemoryError, MemoryError) as error:
        return f"{type(error).__name__}: {first_line(error)}"

"""The rehearsal as a task of Ray, on the resources of a rank, once per run."""

import logging
from dataclasses import replace

import ray

from boom_ray import artifacts, storage
from boom_ray.runs.layout import Layout
from boom_ray.runtime.cluster import ProcessLost, result_of
from boom_ray.train.bag_job import BagJob
from boom_ray.train.capacity import task_options

logger = logging.getLogger(__name__)


def rehearse_once(job: BagJob) -> None:
    """Rehearse a bag, unless it or another bag of the run was rehearsed with the same settings.

    All bags of a run have the same base model and settings. A worker with too little memory is no reason to
    refuse: ranks share what the rehearsal holds alone.

    Raises:
        BoomError: if the base model cannot be trained with this recipe, naming the key to change.
    """
    recipe, uri = job.recipe, Layout(job.recipe.root).rehearsal
    settings = [recipe.base_model, recipe.train, recipe.data]
    made_from = [
        [parent.digest for parent in job.parents],
        *(section.model_dump(mode="json") for section in settings),
        artifacts.libraries(),
    ]
    key = artifacts.fingerprint(made_from).encode()
    if storage.is_file(uri) and storage.read_bytes(uri) == key:
        return
    reference = (
        ray.remote(_rehearse)
        .options(max_retries=0, **task_options(recipe.train.execution))
        .remote(replace(job, progress_actor=None))
    )
    try:
        outcome = result_of(reference)
    except ProcessLost as error:
        outcome = error.reason
    if isinstance(outcome, str):
        logger.warning("rehearsal: ended early, and training begins without it: %s", outcome)
        return
    logger.info("rehearsal: the base model can be trained, %.1f s", outcome)
    storage.write_bytes(uri, key)


def _rehearse(job: BagJob) -> float | str:
    """The seconds that the rehearsal took, or the reason why this worker has too little memory for it."""
    import torch

    from boom_ray.errors import first_line
    from boom_ray.train.rehearsal import rehearse

    try:
        return rehearse(job, "cuda" if job.recipe.train.execution.use_gpu else "cpu")
    except (torch.OutOfMemoryError, MemoryError) as error:
        return f"{type(error).__name__}: {first_line(error)}"

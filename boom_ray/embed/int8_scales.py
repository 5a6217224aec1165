"""The scales of `int8` vectors: one range per dimension for a whole output, and for those that add to it."""

from dataclasses import replace

import ray

from boom_ray import artifacts, storage
from boom_ray.artifacts import EmbeddingsRecord
from boom_ray.artifacts.staging import Stage
from boom_ray.embed.embed_plan import EmbedPlan, EncoderPool
from boom_ray.embed.encode import PartitionEncoder
from boom_ray.embed.vectors import Reduction, Scales
from boom_ray.runtime.cluster import result_of

FILE = "calibration.json"
SAMPLE_ROWS = 512


def calibrated(plan: EmbedPlan, pool: EncoderPool, stage: Stage) -> Reduction:
    """The reduction of a plan, with scales if it stores `int8`.

    They come from the output this one adds to, or from an earlier run into this output; else they are
    measured. Either way they are stored with the output: a resumed run must not measure again.
    """
    if plan.reduction.dtype != "int8":
        return plan.reduction
    scales = _inherited(plan) or stored(stage)
    if scales is None:
        task = ray.remote(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus)(_measure)
        scales = result_of(task.remote(plan, pool))
    storage.write_bytes(storage.join(stage.uri, FILE), scales.to_json())
    return replace(plan.reduction, scales=scales)


def stored(stage: Stage) -> Scales | None:
    """The scales stored with an output, if it has any."""
    uri = storage.join(stage.uri, FILE)
    return Scales.from_json(storage.read_bytes(uri)) if storage.is_file(uri) else None


def _inherited(plan: EmbedPlan) -> Scales | None:
    if not plan.source.options.since:
        return None
    config = artifacts.read(plan.source.options.since[0], EmbeddingsRecord).config
    return Scales.from_lists(config.low, config.high) if config.low and config.high else None


def _measure(plan: EmbedPlan, pool: EncoderPool) -> Scales:
    """The range of each dimension in the embeddings of the first texts."""
    texts = plan.first_texts(SAMPLE_ROWS)
    return plan.reduction.fit(PartitionEncoder(plan, pool).encoder.encode(texts, plan.prompt))

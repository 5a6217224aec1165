"""The scales of `int8` and `uint8` vectors: one range per dimension, also for outputs that add to another."""

import ray

from boom_ray import artifacts
from boom_ray.artifacts import EmbeddingsRecord
from boom_ray.embed.embed_plan import EmbedPlan, EncoderPool
from boom_ray.embed.encode import PartitionEncoder
from boom_ray.embed.vectors import SCALED, Scales
from boom_ray.runtime.cluster import result_of

SAMPLE_ROWS = 512


def calibrated(plan: EmbedPlan, pool: EncoderPool, stored: Scales | None) -> Scales | None:
    """The scales of a plan, if its type needs some.

    They come from the output this one adds to, or from a partition that an earlier run stored; else they are
    measured.
    """
    if plan.reduction.dtype not in SCALED:
        return None
    scales = _inherited(plan) or stored
    if scales is None:
        task = ray.remote(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus)(_measure)
        scales = result_of(task.remote(plan, pool))
    return scales


def _inherited(plan: EmbedPlan) -> Scales | None:
    if not plan.source.options.since:
        return None
    config = artifacts.read(plan.source.options.since[0], EmbeddingsRecord).config
    return Scales.from_lists(config.low, config.high) if config.low and config.high else None


def _measure(plan: EmbedPlan, pool: EncoderPool) -> Scales:
    """The range of each dimension in the embeddings of the first texts."""
    texts = plan.first_texts(SAMPLE_ROWS)
    return plan.reduction.fit(PartitionEncoder(plan, pool).encoder.encode(texts, plan.prompt))

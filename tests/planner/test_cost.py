"""The time of a step: the longest of what runs at the same time, and what waits for it."""

from dataclasses import replace

import numpy as np
import pytest

from boom_ray.planner import cost, hardware
from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.hardware import RankSpec
from boom_ray.planner.passes import SampledBatch, StepPasses
from boom_ray.planner.shape import ModelShape
from boom_ray.planner.texts import BatchMix
from boom_ray.recipe import Lora, Train
from boom_ray.recipe.execution import TrainExecution

SMALL = ModelShape(6e8, 4.4e8, 0, 28, 1024, 2048, 1024, 3072, 1, 0)
FREE = RankSpec(
    memory=80e9,
    flops=1e30,
    encode_flops=1e30,
    memory_bandwidth=1e30,
    link=1e30,
    network=1e30,
    launch=0,
    collate=0,
    tokenize=1e30,
)


def train(stage: int = 1, **values) -> Train:
    own = {key: values.pop(key) for key in list(values) if key in Train.model_fields}
    return Train(execution=TrainExecution(use_gpu=True, zero_stage=stage, **values), **own)


def mix(*lengths: int) -> BatchMix:
    counted = np.array(lengths)
    return BatchMix([(1.0, SampledBatch(counted, 4 * counted))])


def step(rank: RankSpec, num_ranks: int = 2, batches: BatchMix | None = None, **values) -> cost.StepCost:
    settings = train(**values)
    cluster = hardware.cluster("H100", 8, settings.execution, Assumptions())
    return cost.step(SMALL, settings, batches or mix(*[100] * 64), num_ranks, cluster, rank)


RATES = {"flops": 1e14, "launch": 1e-6, "tokenize": 1e5, "link": 1e9}
PARTS = {"flops": "compute", "launch": "launches", "tokenize": "feed", "link": "network"}


def test_what_runs_at_the_same_time_takes_the_longest_of_it():
    every = step(replace(FREE, **RATES), stage=2)
    passes = max(every.compute, every.launches, every.overlapped)
    assert every.seconds == pytest.approx(max(every.feed, passes + every.exposed))
    for name, part in PARTS.items():
        alone = step(replace(FREE, **{name: RATES[name]}), stage=2)
        assert 0 < getattr(alone, part) == pytest.approx(alone.seconds)
        slower = RATES[name] * (1000 if name == "launch" else 1 / 1000)
        longest = step(replace(FREE, **(RATES | {name: slower})), stage=2)
        waits = every.exposed if name in ("flops", "launch") else 0.0
        assert longest.seconds == pytest.approx(1000 * getattr(every, part) + waits)


@pytest.mark.parametrize(
    ("values", "gradients", "overlaps"),
    [
        ({"stage": 0, "precision": "fp32"}, 2 * 4, False),
        ({"stage": 1, "precision": "fp32"}, 3 * 4, True),
        ({"stage": 1}, 3 * 2, False),  # BF16_Optimizer
        ({"stage": 1, "offload": "optimizer"}, 3 * 2, True),
        ({"stage": 2}, (2 * 3 + 1) * 2, True),
        ({"stage": 3}, (3 + 2 + 3 * 2) * 2, True),
    ],
)
def test_a_rank_sends_what_deepspeed_sends(values, gradients, overlaps):
    """Of three chunks two are embedded twice; counted in bytes of a weight, on very many ranks."""
    passes = StepPasses([], num_chunks=3, num_repeated=2)
    sent = cost.sent_bytes(SMALL, train(**values), 0, passes, 10**9)
    assert sum(sent) == pytest.approx(gradients * SMALL.parameters)
    assert (sent.overlapped > 0) == overlaps
    on_cpus = train(**values).model_copy(update={"execution": TrainExecution(zero_stage=values["stage"])})
    assert cost.sent_bytes(SMALL, on_cpus, 0, passes, 10**9).overlapped == 0
    assert sum(cost.sent_bytes(SMALL, train(**values), 5, passes, 1)) == 0


def test_the_slowest_rank_counts_and_chunks_that_are_kept_are_embedded_once():
    slow = replace(FREE, flops=1.0)
    even, uneven = step(slow, batches=mix(100, 100)), step(slow, batches=mix(190, 10))
    assert even.compute == pytest.approx(even.flops / 2)
    assert uneven.compute == pytest.approx(0.95 * uneven.flops, rel=0.01)
    many = mix(*[64] * 300)  # 19,200 tokens on one rank, padded in fp32
    padded = step(slow, 1, many, precision="fp32", chunk_tokens=16384)
    once = step(slow, 1, many, precision="fp32", chunk_tokens=10**6)
    repeated = padded.flops / once.flops - 1
    assert repeated == pytest.approx((19200 - 16384) / 19200 / 3), "and not half of it"


def test_adapters_send_and_multiply_less():
    adapted = replace(SMALL, adapters=1e6)
    settings, batches = train(lora=Lora(), stage=2), mix(*[100] * 64)
    cluster = hardware.cluster("H100", 8, settings.execution, Assumptions())
    less = cost.step(adapted, settings, batches, 2, cluster, FREE)
    whole = step(FREE, stage=2)
    assert less.sent < whole.sent / 100 and less.flops == pytest.approx(2 / 3 * whole.flops, rel=0.01)

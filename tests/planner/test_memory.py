"""Memory by ZeRO stage, compared with the figure of the ZeRO paper."""

import pytest

from boom_ray.planner import memory
from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.shape import ModelShape
from boom_ray.recipe import Average, Lora, Train
from boom_ray.recipe.execution import TrainExecution

BILLION = ModelShape(7.5e9, 7e9, 0, 32, 4096, 4096, 4096, 16384, 0, 0)


def train(**values) -> Train:
    own = {key: value for key, value in values.items() if key in Train.model_fields}
    rest = {key: value for key, value in values.items() if key not in own}
    return Train(execution=TrainExecution(**rest), **own)


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_states_of_7_5_billion_weights_on_64_ranks_are_those_of_the_papers_figure_1(stage, gigabytes):
    """The paper's gradients have 2 bytes, ours 4."""
    more = 2 * 7.5 / (64 if stage >= 2 else 1)
    assert memory.states(BILLION, train(), 64, stage) / 1e9 == pytest.approx(gigabytes + more, rel=0.02)


def test_full_precision_and_adapters_by_hand():
    assert memory.states(BILLION, train(precision="fp32"), 1, 0) == 16 * 7.5e9
    adapted = ModelShape(4e9, 4e9, 66e6, 36, 2560, 4096, 1024, 9728, 1, 0)
    assert memory.states(adapted, train(lora=Lora()), 8, 3) == pytest.approx((2 * 4.066e9 + 16 * 66e6) / 8)
    assert memory.checkpoint_bytes(adapted, train(lora=Lora())) == 12 * 66e6


def test_a_checkpoint_with_an_average_has_one_more_copy_of_the_weights():
    averaged = train(average=Average(last=4, every_steps=50))
    more = memory.checkpoint_bytes(BILLION, averaged) - memory.checkpoint_bytes(BILLION, train())
    assert more == memory.average_bytes(BILLION, averaged) == 4 * 7.5e9


def test_host_memory_holds_the_average_a_copy_of_the_checkpoint_and_what_is_offloaded():
    settings = {"zero_stage": 2, "average": Average(last=4, every_steps=50)}
    average, share = 4 * 7.5e9, 12 * 7.5e9 / 8
    on_gpu, on_cpu = train(use_gpu=True, **settings), train(**settings)
    assert memory.checkpoint_share(BILLION, on_cpu, 8, 2) == share + average
    assert memory.checkpoint_share(BILLION, on_cpu, 8, 0) == 8 * share + average
    assert memory.host_bytes(BILLION, on_gpu, 8, 2, saves=True) == average + share + average
    assert memory.host_bytes(BILLION, on_gpu, 8, 2, saves=False) == average
    offloaded = train(use_gpu=True, zero_stage=2, offload="optimizer")
    assert memory.host_bytes(BILLION, offloaded, 8, 2, saves=False) == pytest.approx(share)
    tables = [memory.table(BILLION, one, 8, 80e9, Assumptions(), saves=True) for one in (on_gpu, on_cpu)]
    assert [table.host for table in tables] == [average + share + average, 0]
    assert [table.recipe.copies for table in tables] == [0, average + share + average]
    assert tables[1].recipe.total > average + share + average


def test_offload_removes_the_optimizer_and_the_weights_from_the_gpu():
    whole = memory.states(BILLION, train(zero_stage=3), 8, 3)
    no_optimizer = memory.states(BILLION, train(zero_stage=3, offload="optimizer"), 8, 3)
    neither = memory.states(BILLION, train(zero_stage=3, offload="all"), 8, 3)
    assert whole - no_optimizer == pytest.approx(12 * 7.5e9 / 8)
    assert no_optimizer - neither == pytest.approx(2 * 7.5e9 / 8)


def test_a_layer_of_berts_shape_stores_what_korthikanti_counts_without_masks_and_scores():
    assert memory.layer_bytes(BILLION, 2) == 32 * BILLION.hidden


def test_chunks_bound_activations_whatever_the_batch():
    def activations(batch: int, **values) -> float:
        return memory.on_rank(BILLION, train(**values), 8, 2, batch, Assumptions()).activations

    assert activations(256) == activations(4096)
    whole = {"chunk_tokens": 10**9}
    assert activations(512, **whole) == pytest.approx(2 * activations(256, **whole))
    assert activations(256, gradient_checkpointing=True) < activations(256) / 10


def test_the_loss_is_bounded_by_one_term():
    per_logit = 16
    few, many = (memory.loss_bytes(BILLION, 8, 256, ranks) for ranks in (8, 1))
    assert many - few == pytest.approx(per_logit * (256 - 32) * 2048)
    embeddings = 16 * 9 * 8192 * BILLION.hidden
    assert memory.loss_bytes(BILLION, 8, 8192, 1) == pytest.approx(embeddings + per_logit * 2**27)


def test_the_largest_chunk_fits_exactly():
    recipe, assume = train(), Assumptions({"memory.activation_factor": 1})
    own = memory.on_rank(BILLION, recipe, 64, 3, 256, assume)
    tokens = memory.largest_chunk(own, BILLION, recipe, 80e9)
    assert tokens > 0
    at_most = train(chunk_tokens=int(tokens))
    assert memory.on_rank(BILLION, at_most, 64, 3, 256, assume).total == pytest.approx(80e9, rel=1e-3)


def test_automatic_chunks_fill_the_memory_of_a_gpu():
    small, assume = ModelShape(6e8, 4.4e8, 0, 28, 1024, 2048, 1024, 3072, 1, 0), Assumptions()
    automatic = train(use_gpu=True, chunk_tokens="auto", gradient_checkpointing=True)
    chosen = memory.with_chunk_tokens(automatic, small, 1, 40e9, assume)
    assert isinstance(chosen.execution.chunk_tokens, int)
    assert 0.7 * 40e9 < memory.on_rank(small, chosen, 1, 1, 256, assume).total < 40e9
    less = memory.with_chunk_tokens(automatic, small, 1, 30e9, assume)
    assert less.execution.chunk_tokens < chosen.execution.chunk_tokens
    fixed = train(use_gpu=True, chunk_tokens=7)
    assert memory.with_chunk_tokens(fixed, small, 1, 40e9, assume) is fixed

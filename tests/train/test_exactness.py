"""The trained weights are independent of the number of ranks, the ZeRO stage and the chunks."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from boom_ray import storage
from boom_ray.data import bags, corpus
from boom_ray.model import directory
from boom_ray.recipe import Recipe
from boom_ray.recipe.execution import Attention
from boom_ray.train.bag_job import BagJob
from boom_ray.train.bagging import make_job
from boom_ray.train.engine import optimizer_step
from tests.base_models import TINY_QWEN3, build_qwen3

pytestmark = pytest.mark.usefixtures("ray_cluster")

Weights = dict[str, np.ndarray]
Gradients = tuple[float, dict[str, np.ndarray]]  # of the first batch, and its loss


class Variant(NamedTuple):
    """Settings that do not change the weights."""

    zero_stage: int
    chunk_tokens: int
    attention: Attention = "auto"


class Traffic(NamedTuple):
    """What the ranks exchange in one step through DeepSpeed, in copies of all weights.

    Attributes:
        kept: Chunks whose activations are kept.
        others: Chunks that run again.
        gathered: Copies of the weights that a rank assembles.
        reduced: Copies of the gradients that the ranks sum.
    """

    kept: int
    others: int
    gathered: float
    reduced: float


class Trained(NamedTuple):
    """What one process group has trained: weights after all steps, first gradients, and traffic of a step."""

    weights: dict[Variant, Weights]
    gradients: list[Gradients]
    traffic: dict[Variant, Traffic]


ALL_KEPT, MOST_AGAIN = 4096, 128  # chunk tokens: a step of the tiny corpus has some 1,200
STEPS = 20
BF16_UNIT = 2**-9  # largest relative error of rounding to bfloat16
# With matrices of more than 100,000 weights, which DeepSpeed shares out at stage 3; smaller ones stay whole.
SHAPE = TINY_QWEN3 | {"hidden_size": 128, "intermediate_size": 1024}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_qwen3(str(tmp_path_factory.mktemp("base") / "qwen3"), SHAPE)


def with_execution(recipe: Recipe, **settings: Any) -> Recipe:
    execution = recipe.train.execution.model_copy(update=settings)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"execution": execution})})


def start(job: BagJob, variant: Variant) -> Any:
    """A `BagTraining` of one variant, on a rank."""
    from boom_ray.train.worker import BagTraining

    return BagTraining(replace(job, recipe=with_execution(job.recipe, **variant._asdict())))


def first_gradients(job: BagJob, variant: Variant) -> Gradients:
    """Loss and gradients of the first global batch. Runs on every rank."""
    from deepspeed.utils import safe_get_full_grad

    training = start(job, variant)
    loss, *_ = training.steps.accumulate(training.loader.batch(0))
    trained = [item for item in training.encoder.named_parameters() if item[1].requires_grad]
    gradients = {name: safe_get_full_grad(parameter).clone().numpy() for name, parameter in trained}
    training.engine.destroy()
    return loss, gradients


def traffic_of_a_step(training: Any) -> Traffic:
    """Run the first step again, and count what DeepSpeed exchanges. Runs on every rank."""
    import deepspeed.comm
    from deepspeed.comm.comm import comms_logger

    weights = training.encoder.transformer.parameters()
    size = 4 * sum(getattr(weight, "ds_numel", weight.numel()) for weight in weights)
    deepspeed.comm.configure(enabled=True, prof_all=True)
    comms_logger.comms_dict.clear()
    *_, counts = training.steps.accumulate(training.loader.batch(0))
    optimizer_step(training.engine)
    deepspeed.comm.configure(enabled=False)
    volumes = {
        name: sum(size * calls for size, (calls, *_) in record.items())
        for name, record in comms_logger.comms_dict.items()
    }
    gathered = training.num_ranks * volumes.get("all_gather_into_tensor", 0) / size
    reduced = (volumes.get("all_reduce", 0) + volumes.get("reduce_scatter_tensor", 0)) / size
    kept = min(counts.kept, counts.chunks)
    return Traffic(kept, counts.chunks - kept, gathered, reduced)


def train_variants(config: dict[str, Any]) -> Trained:
    """Train every variant in one process group. Runs on every rank."""
    from boom_ray.train.master_weights import trained_weights

    job, results, traffic = config["job"], {}, {}
    for variant in config["variants"]:
        training = start(job, variant)
        for step, batch in training.loader.from_step(0):
            training.steps.run(step, batch)
        weights = trained_weights(training.engine, training.encoder.transformer, torch.float32)
        results[variant] = {name: weight.clone().numpy() for name, weight in weights.items()}
        traffic[variant] = traffic_of_a_step(training)
        training.engine.destroy()
    return Trained(results, [first_gradients(job, variant) for variant in config["gradients_of"]], traffic)


def train(
    recipe: Recipe, num_ranks: int, variants: list[Variant], gradients_of: Sequence[Variant] = ()
) -> Trained:
    prepared = corpus.prepare(recipe.data, storage.join(recipe.root, "corpus"), recipe.name)
    drawn = bags.publish(prepared, recipe.bags, storage.join(recipe.root, "bags"))
    trainer = TorchTrainer(
        train_variants,
        train_loop_config={
            "job": make_job(recipe, 1, prepared, drawn, directory.identify(recipe.base_model.path), None),
            "variants": variants,
            "gradients_of": gradients_of,
        },
        scaling_config=ScalingConfig(num_workers=num_ranks, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=storage.join(recipe.root, "ray_train")),
    )
    return trainer.fit().return_value


def difference(weights: Weights, expected: Weights) -> float:
    """Relative difference over all weights together."""
    assert weights.keys() == expected.keys()
    square = sum(np.square(weights[name].astype(float) - expected[name]).sum() for name in expected)
    return float(np.sqrt(square / sum(np.square(array.astype(float)).sum() for array in expected.values())))


@pytest.mark.slow
def test_weights_are_equal_for_all_ranks_stages_and_chunks(make_recipe, base, capsys):
    recipe = make_recipe(base)
    recipe = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"epochs": 9, "max_steps": STEPS})}
    )
    rows = list(itertools.product((ALL_KEPT, MOST_AGAIN), ("auto", "varlen")))
    variants = [Variant(stage, *row) for stage in range(4) for row in rows]
    found = {ranks: train(recipe, ranks, variants).weights for ranks in (1, 2, 4)}
    expected = found[1][Variant(0, ALL_KEPT)]
    with capsys.disabled():
        print(f"\n{STEPS} steps: relative difference of all weights to one rank, ZeRO 0, chunks of 4,096")
        print("ranks  chunk tokens  attention  " + "  ".join(f"ZeRO {stage} " for stage in range(4)))
        for ranks, (tokens, attention) in itertools.product((1, 2, 4), rows):
            row = [difference(found[ranks][Variant(n, tokens, attention)], expected) for n in range(4)]
            print(f"{ranks:5}  {tokens:12,}  {attention:9}  " + "  ".join(f"{value:.1e}" for value in row))
    for variants_of_ranks in found.values():
        for weights in variants_of_ranks.values():
            assert difference(weights, expected) < 1e-5


def test_two_ranks_compute_the_gradients_and_weights_of_one(make_recipe, base):
    recipe = make_recipe(base)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 6})})
    whole, sharded, cut = Variant(0, ALL_KEPT), Variant(1, ALL_KEPT), Variant(1, MOST_AGAIN)
    packed, packed_and_cut = Variant(1, ALL_KEPT, "varlen"), Variant(3, MOST_AGAIN, "varlen")
    one = train(recipe, 1, [whole, sharded, packed], gradients_of=[sharded])
    others = [Variant(2, MOST_AGAIN), Variant(3, ALL_KEPT), packed_and_cut]
    two = train(recipe, 2, [cut, *others], gradients_of=[cut])
    [(loss, gradients)], [(loss_of_two, gradients_of_two)] = one.gradients, two.gradients
    assert loss_of_two == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == gradients_of_two.keys() and len(gradients) > 10
    for name in gradients:
        assert difference({name: gradients_of_two[name]}, {name: gradients[name]}) < 1e-5, name
    expected = one.weights[whole]
    for variant, weights in [*one.weights.items(), *two.weights.items()]:
        assert difference(weights, expected) < 1e-5, variant
    untrained = directory.load_encoder(base, recipe.base_model).transformer.state_dict()
    untrained = {name: weight.numpy() for name, weight in untrained.items()}
    assert difference(untrained, expected) > 1e-4, "training changes the weights"
    check_traffic(two.traffic)


def check_traffic(found: dict[Variant, Traffic]) -> None:
    """Chunks cost no exchange at stage 1, one reduction each at stage 2, and gathered weights at stage 3."""
    for (stage, chunk_tokens, _), (kept, others, gathered, reduced) in found.items():
        assert (others > 0) == (chunk_tokens == MOST_AGAIN)
        # Stage 3 gathers in each pass: forward and backward of what is kept, twice forward of the others.
        passes = 2 * kept + 3 * others if stage == 3 else 1
        assert gathered == pytest.approx(passes, rel=0.1)
        assert reduced == pytest.approx(1 if stage == 1 else 1 + others, rel=0.1)


@pytest.mark.slow
def test_gradients_in_bf16_are_independent_of_the_number_of_chunks(make_recipe, qwen3):
    """A chunk is up to one text. Summed in bf16, the gradients of so many differ by 6 to 7 units."""
    recipe, update = make_recipe(qwen3), {"precision": "bf16", "batch_size": 32, "temperature": 0.05}
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=update)})
    variants = [Variant(1, ALL_KEPT), Variant(1, MOST_AGAIN), Variant(1, 1), Variant(2, 1)]
    (loss, gradients), *others = train(recipe, 1, [], gradients_of=variants).gradients
    matrices = {name for name in gradients if name.endswith("proj.weight")}
    for variant, (loss_of_other, gradients_of_other) in zip(variants[1:], others, strict=True):
        assert loss_of_other == pytest.approx(loss, rel=BF16_UNIT)
        found, expected = ({name: of[name] for name in matrices} for of in (gradients_of_other, gradients))
        # Vectors differ by 1.4 units between forward passes of different shapes, gradients by twice that.
        assert difference(found, expected) < 4 * BF16_UNIT, variant

"""A checkpoint is resumed by any number of ranks, at any ZeRO stage and offload, to the same weights."""

import glob
import itertools
import os
import shutil
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from boom_ray import storage
from boom_ray.artifacts import checkpoints
from boom_ray.data import bags, corpus
from boom_ray.model import directory
from boom_ray.recipe import Average, Lora, Recipe
from boom_ray.train.bag_job import BagJob
from boom_ray.train.bagging import make_job
from tests.artifacts.test_checkpoints import flip
from tests.base_models import build_qwen3
from tests.train.test_exactness import SHAPE, Weights, difference, with_execution

pytestmark = pytest.mark.usefixtures("ray_cluster")

STEPS, SAVED_AT = 4, (1, 2)
KINDS: dict[str, dict[str, Any]] = {
    "full": {"average": Average(last=2, every_steps=2)},
    "lora": {"lora": Lora(rank=4, alpha=8, targets=["q_proj", "down_proj"]), "learning_rate": 1e-3},
    "half": {"precision": "bf16"},
}


class Task(NamedTuple):
    """Train to the end, from a checkpoint if there is a source.

    Attributes:
        source: Directory of checkpoints to resume from.
        target: Directory to save checkpoints in.
    """

    kind: str
    zero_stage: int
    source: str = ""
    target: str = ""
    offload: str = "none"


class Outcome(NamedTuple):
    """What a task came to.

    Attributes:
        resumed_at: Steps of the checkpoint that was resumed.
        weights: The final ones, and their average if there is one; empty if they were compared at once.
        error: Relative difference of the weights to those that were expected.
    """

    resumed_at: int
    weights: Weights
    error: float = 0.0


def checkpoints_at(training: Any, uri: str) -> Any:
    from boom_ray.train.bag_checkpoints import BagCheckpoints

    job = replace(training.job, checkpoints=uri)
    log, ranks = training.reporter.log, (training.rank, training.num_ranks)
    return BagCheckpoints(job, training.encoder, training.engine, training.average, log, *ranks)


def perform(training: Any, task: Task) -> Outcome:
    from boom_ray.train.master_weights import trained_weights
    from boom_ray.train.training_state import TrainingState

    state = TrainingState.initial(training.num_ranks, None)
    if task.source:
        state = checkpoints_at(training, task.source).resume()
        assert state is not None and state.num_ranks == training.num_ranks
    resumed_at = state.step
    saved = checkpoints_at(training, task.target) if task.target else None
    for step, batch in training.loader.from_step(state.step):
        training.steps.run(step, batch)
        state = state.after_step(0.0, 0, 0.0)
        training.average.after_step(state.step)
        if saved and state.step in SAVED_AT:
            saved.save(state)  # it is written while the next steps change the weights
    if saved:
        saved.wait()
        dist.barrier()
    weights = trained_weights(training.engine, training.encoder.transformer, torch.float32)
    if task.kind == "full":
        averaged = training.weights(torch.float32).items()
        weights |= {f"average/{name}": weight for name, weight in averaged}
    return Outcome(resumed_at, {name: weight.clone().numpy() for name, weight in weights.items()})


def check_loss_scale() -> None:
    """A restored loss scale of fp16, which not every CPU can train in, goes on as the saved one."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    from boom_ray.train.engine_state import LossScale

    def run(scaler: DynamicLossScaler, overflows: str) -> list[float]:
        scales = []
        for step in overflows:
            scaler.update_scale(step == "x")
            scales.append(scaler.cur_scale)
        return scales

    undisturbed, resumed = (DynamicLossScaler(2**16, 3, 1, 2, False) for _ in range(2))
    assert len(set(run(undisturbed, "x..xx.....x"))) > 1
    saved = LossScale.of(undisturbed)
    assert saved != LossScale.of(resumed)
    LossScale.model_validate(saved.model_dump()).restore(resumed)
    assert run(resumed, "...x...xx......x") == run(undisturbed, "...x...xx......x")


def check_notices(rank: int) -> None:
    """A notice about a node is new once, on all ranks, although only the first one knows of it."""
    from ray.train.v2._internal.execution.context import get_train_context
    from ray.train.v2.api.preemption import PreemptionInfo

    from boom_ray.train.preemption import PreemptionNotices

    notices, context = PreemptionNotices(), get_train_context()
    assert not notices.is_new(10.0)
    for number, nodes in enumerate([{"a": [0]}, {"a": [0], "b": [1]}], start=2):
        if rank == 0:  # as the watcher of Ray Train does
            context.preemption_context.preemption_info = PreemptionInfo(None, nodes)
        assert not notices.is_new(10.0 * number - 9), "not within two seconds of the last look"
        assert notices.is_new(10.0 * number) and not notices.is_new(10.0 * number + 5)


def perform_all(config: dict[str, Any]) -> list[Outcome]:
    """The outcomes of all tasks in one process group; tasks that resume use the engine of those before."""
    from boom_ray.train.worker import BagTraining

    outcomes, training, made = [], None, None
    for task in config["tasks"]:
        job = config["jobs"][task.kind]
        settings = {"zero_stage": task.zero_stage, "offload": task.offload}
        if training is None or made != (task.kind, settings) or not task.source:
            if training is not None:
                training.engine.destroy()
            training = BagTraining(replace(job, recipe=with_execution(job.recipe, **settings)))
            made = (task.kind, settings)
        outcome = perform(training, task)
        if config["expected"] and training.rank == 0:
            error = difference(outcome.weights, config["expected"][task.kind])
            outcome = Outcome(outcome.resumed_at, {}, error)
        outcomes.append(outcome)
    check_loss_scale()  # needs the process group of DeepSpeed
    check_notices(dist.get_rank())
    return outcomes


def jobs_of(recipe: Recipe) -> dict[str, BagJob]:
    prepared = corpus.prepare(recipe.data, storage.join(recipe.root, "corpus"), recipe.name)
    drawn = bags.publish(prepared, recipe.bags, storage.join(recipe.root, "bags"))
    base = directory.identify(recipe.base_model.path)
    jobs = {}
    for kind, settings in KINDS.items():
        train = recipe.train.model_copy(update={"max_steps": STEPS, **settings})
        jobs[kind] = make_job(recipe.model_copy(update={"train": train}), 1, prepared, drawn, base, None)
    return jobs


def run(
    jobs: dict[str, BagJob], num_ranks: int, tasks: list[Task], expected: dict[str, Weights] | None = None
) -> list[Outcome]:
    trainer = TorchTrainer(
        perform_all,
        train_loop_config={"jobs": jobs, "tasks": tasks, "expected": expected},
        scaling_config=ScalingConfig(num_workers=num_ranks, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=storage.join(jobs["full"].recipe.root, "ray_train")),
    )
    return trainer.fit().return_value


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With matrices that stage 3 cuts."""
    return build_qwen3(str(tmp_path_factory.mktemp("base") / "qwen3"), SHAPE)


def test_another_number_of_ranks_stage_and_offload_resume_to_the_same_weights(make_recipe, base, tmp_path):
    jobs, root = jobs_of(make_recipe(base)), str(tmp_path)
    begun = [Task("full", 3, "", f"{root}/full"), Task("lora", 2, "", f"{root}/lora")]
    in_half = [Task("half", 1, "", f"{root}/half"), Task("half", 1, f"{root}/half")]
    full, lora, half, resumed = run(jobs, 2, [*begun, *in_half])
    assert resumed.resumed_at == 2 and difference(resumed.weights, half.weights) == 0, "of master weights"
    shutil.copytree(f"{root}/full", f"{root}/damaged")
    [newer] = glob.glob(f"{root}/damaged/step-00000002-*")
    flip(f"{newer}/rank-1.safetensors")
    tasks = [
        Task("full", 0, f"{root}/full"),
        Task("full", 2, f"{root}/full", offload="optimizer"),
        Task("full", 1, f"{root}/damaged"),
        Task("lora", 1, f"{root}/lora"),
    ]
    outcomes = run(jobs, 1, tasks)
    assert [outcome.resumed_at for outcome in outcomes] == [2, 2, 1, 2]
    for task, outcome in zip(tasks, outcomes, strict=True):
        expected = full if task.kind == "full" else lora
        assert difference(outcome.weights, expected.weights) < 1e-6, task
    check_files(root, base)


def check_files(root: str, base: str) -> None:
    """A rank stores 12 bytes per weight that it holds, the first one 4 more for averages; no more files."""
    stored = {}
    for kind in ("full", "lora"):
        uri, manifest = next(checkpoints.complete(f"{root}/{kind}"))
        assert sorted(os.listdir(uri)) == sorted([*manifest.files, checkpoints.MANIFEST])
        stored[kind] = {file: entry.size for file, entry in manifest.files.items()}
        del stored[kind]["metrics.jsonl"]
    weights = os.path.getsize(f"{base}/model.safetensors") / 4
    assert stored["full"] == {
        "rank-0.safetensors": pytest.approx(10 * weights, rel=0.02),
        "rank-1.safetensors": pytest.approx(6 * weights, rel=0.02),
    }
    assert sum(stored["lora"].values()) < weights, "adapters only"


@pytest.mark.slow
def test_the_matrix_of_ranks_stages_and_adapters(make_recipe, base, tmp_path, capsys):
    jobs = jobs_of(make_recipe(base))
    cells = list(itertools.product(("full", "lora"), (1, 2, 4), range(4)))
    saved = {cell: f"{tmp_path}/{'-'.join(map(str, cell))}" for cell in cells}
    undisturbed: dict[str, Weights] = {}
    for num_ranks in (1, 2, 4):
        own = [cell for cell in cells if cell[1] == num_ranks]
        tasks = [Task(cell[0], cell[2], "", saved[cell]) for cell in own]
        outcomes = run(jobs, num_ranks, tasks)
        for (kind, _, _), outcome in zip(own, outcomes, strict=True):
            undisturbed.setdefault(kind, outcome.weights)
            assert difference(outcome.weights, undisturbed[kind]) < 1e-6
    worst = dict.fromkeys(cells, 0.0)
    for num_ranks in (1, 2, 4):
        pairs = [
            (saver, Task(saver[0], stage, saved[saver]))
            for kind, stage in itertools.product(("full", "lora"), range(4))
            for saver in cells
            if saver[0] == kind
        ]
        outcomes = run(jobs, num_ranks, [task for _, task in pairs], undisturbed)
        for (saver, task), outcome in zip(pairs, outcomes, strict=True):
            assert outcome.resumed_at == SAVED_AT[-1]
            worst[saver] = max(worst[saver], outcome.error)
            assert outcome.error < 1e-6, (saver, num_ranks, task)
    with capsys.disabled():
        print("\nsaved by: largest difference after 1, 2, 4 ranks at ZeRO 0 to 3 have resumed it; bytes")
        for (kind, num_ranks, stage), value in worst.items():
            _, manifest = next(checkpoints.complete(saved[kind, num_ranks, stage]))
            size = sum(entry.size for entry in manifest.files.values())
            print(f"{kind} {num_ranks} x ZeRO {stage}  {value:.1e}  {size:,}")

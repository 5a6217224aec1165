"""Plans: without Ray, for any cluster, and for corpora larger than any disk."""

import os
import re
from dataclasses import astuple, replace
from typing import Any

import pytest
import ray
import yaml
from click.testing import CliRunner

from boom_ray.cli import main
from boom_ray.data.batches import num_steps
from boom_ray.errors import InputError, NotFoundError
from boom_ray.planner import hardware
from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.calibration import Calibration, store, stored
from boom_ray.planner.estimate import BagEstimate, Estimate, estimate
from boom_ray.planner.forecast import bottleneck, forecast, head_memory
from boom_ray.planner.plan import PlanOptions, RunPlan, gather, plan
from boom_ray.planner.shape import ConfigNotFoundError, ModelShape
from boom_ray.recipe import Recipe
from boom_ray.recipe.execution import EvaluateExecution
from boom_ray.train.schedule import best

CALM = {"spot.losses_per_node_hour": 0.0}  # so that nothing is simulated often


@pytest.fixture
def billion(tmp_path) -> str:
    """A recipe of 10^9 rows without files, and a hundred bags."""
    values = {
        "name": "billion",
        "storage": str(tmp_path / "runs"),
        "base_model": {"path": "hf://Qwen/Qwen3-0.6B", "pooling": "lasttoken"},
        "data": {"tasks": [
            {"name": "web", "path": "s3://nowhere/web", "expected_rows": 999_999_000},
            {"name": "small", "path": "s3://nowhere/small", "expected_rows": 1000, "type": "classification"},
        ]},
        "bags": {"ratios": [5] * 100},
        "train": {"execution": {"num_workers": "auto", "use_gpu": True, "gradient_checkpointing": True}},
    }  # fmt: skip
    path = tmp_path / "billion.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def invoke(*arguments: str):
    return CliRunner().invoke(main, ["plan", *arguments])


def test_a_billion_rows_are_counted_and_not_sampled(billion):
    result = invoke(billion, "--gpus", "4096", "--price", "2", "--assume", "data.distinct=1")
    assert result.exit_code == 0, result.output
    made = plan(Recipe.load(billion), PlanOptions(num_gpus=4096, price=2, overrides={"data.distinct": 1}))
    steps = num_steps([round(999_999_000 * 0.05), 50], Recipe.load(billion).train)
    last = made.estimate.bags[-1]
    assert (last.name, last.planned.bag.ratio, last.rows, last.steps) == ("bag-100", 5, 50_000_000, steps)
    assert made.estimate.passes == pytest.approx(5) and made.price == pytest.approx(2 * made.held_hours)
    assert made.assumptions["data.distinct"].source == "overridden" and made.scale == []
    assert list(made.lines()) == result.output.splitlines()
    assert "bag-100: 5 % of every task, 50,000,000 rows" in result.output
    assert (
        f"cost: 5.0x one pass over the corpus of 1,000,000,000 rows, {100 * steps:,} steps" in result.output
    )
    assert f"price {made.price:,.2f}" in result.output
    assert len(re.findall(r"\|.*#.*\|", result.output)) == 101, "a line per bag, and one for the merge"


def test_a_baseline_is_one_more_bag_but_not_merged(billion):
    recipe = Recipe.load(billion)
    without, with_baseline = (plan(recipe, PlanOptions(num_gpus=800, baseline=one)) for one in (False, True))
    last = with_baseline.estimate.bags[-1]
    assert (last.name, last.planned.bag.ratio, last.rows) == ("baseline", 100, 1_000_000_000)
    assert len(with_baseline.estimate.bags) == 101 and with_baseline.estimate.passes == pytest.approx(6)
    assert with_baseline.estimate.merge == without.estimate.merge


def test_bags_are_stored_as_trained_weights_in_the_recipes_type_or_as_adapters(billion):
    def bytes_of(**train: Any) -> tuple[float, float, ModelShape]:
        recipe = Recipe.load(billion)
        train = recipe.train.model_dump() | train
        made = plan(Recipe.model_validate(recipe.model_dump() | {"train": train}), PlanOptions(num_gpus=800))
        return (
            made.estimate.storage["models of bags"],
            made.estimate.network["merge"],
            made.estimate.workload.shape,
        )

    stored, merged, shape = bytes_of()
    assert (stored, merged) == (100 * 4 * shape.parameters, (100 * 4 + 2 + 2) * shape.parameters)
    assert bytes_of(save_dtype="bfloat16")[0] == stored / 2
    adapters, read, shape = bytes_of(lora={"rank": 8})
    assert adapters == 100 * 4 * shape.adapters < stored / 60
    assert read == adapters + (2 + 2) * shape.parameters, "the base model is read once"


def test_bags_with_settings_of_their_own_are_planned_with_them(billion):
    def recipe(*ratios: Any, **train: Any) -> Recipe:
        values = Recipe.load(billion).model_dump()
        values["train"] |= {"execution": values["train"]["execution"] | {"num_workers": 32}} | train
        return Recipe.model_validate(values | {"bags": {"ratios": ratios}})

    def bags(*ratios: Any, **train: Any) -> RunPlan:
        return plan(recipe(*ratios, **train), PlanOptions(num_gpus=64, overrides=CALM))

    adapters = {"ratio": 100, "lora": {"rank": 8}, "epochs": 2, "tasks": {"small": 0}}
    mixed, full, adapted = bags(100, adapters), bags(100, 100), bags(100, 100, lora={"rank": 8})
    first, second = mixed.estimate.bags
    assert (second.rows, second.steps) == (999_999_000, 2 * -(-999_999_000 // 256))
    assert first.step == full.estimate.bags[0].step
    assert astuple(second.step) == pytest.approx(astuple(adapted.estimate.bags[1].step))
    assert second.step.flops < 0.8 * first.step.flops
    both = full.estimate.storage["models of bags"] + adapted.estimate.storage["models of bags"]
    assert mixed.estimate.storage["models of bags"] == both / 2
    assert mixed.memory == full.memory, "that of the bag that needs the most"
    assert mixed.memory.recipe.states > adapted.memory.recipe.states
    assert (mixed.estimate.save, mixed.estimate.upload) == (full.estimate.save, full.estimate.upload)
    for own, num_trained in ((100, 2), (adapters, 3), ({"ratio": 100, "seed": 1}, 3)):
        workload = gather(recipe(own, 50), None, Assumptions(), baseline=True)
        assert len(workload.trained) == num_trained, "a plain bag of the full corpus is the baseline"
    assert "bag-2: 100 % of every task, 0 % of small, epochs 2, lora of rank 8, " in "\n".join(mixed.lines())


def test_averages_take_time_and_are_part_of_checkpoints(billion):
    def bag(**train: Any) -> BagEstimate:
        values = Recipe.load(billion).model_dump()
        values["train"] |= train
        free = {name: value for name, value in FREE.items() if not name.startswith("checkpoint")}
        overrides = free | {"checkpoint.copy_bytes_per_second": 1e9}
        return estimated(Recipe.model_validate(values), 800, overrides).bags[0]

    plain, averaged = bag(), bag(average={"last": 5, "every_steps": 100})
    shape = plain.planned.shape
    assert averaged.averaging == pytest.approx(5 * 4 * shape.parameters / 1e9) and plain.averaging == 0
    assert averaged.seconds - plain.seconds == pytest.approx(averaged.averaging)
    assert averaged.checkpoint_bytes - plain.checkpoint_bytes == 4 * shape.parameters


def test_stored_checkpoints_are_those_of_each_bag_with_the_one_that_is_being_stored(billion):
    def stored(*ratios: Any, save_every: int = 200) -> float:
        values = Recipe.load(billion).model_dump() | {"bags": {"ratios": ratios}}
        values["train"]["execution"] |= {"num_workers": 32, "save_every_steps": save_every}
        return estimated(Recipe.model_validate(values), 64, {}).storage["checkpoints at once"]

    short = {"ratio": 5, "max_steps": 201}
    one = stored(short)
    assert (stored(5), stored({"ratio": 5, "max_steps": 200}), stored(5, short)) == (3 * one, 0, 4 * one)
    assert stored(5, 5, 5) == 6 * one, "two train at a time"
    assert stored(5, {"ratio": 5, "lora": {"rank": 8}}) < 3.1 * one, "adapters alone are stored"


def test_remote_files_are_copied_once_a_node(make_recipe, minilm):
    recipe, assume = make_recipe(minilm), Assumptions()
    workload = gather(recipe, None, assume)

    def made(num_cpus: int, storage: str = recipe.storage) -> Estimate:
        own = replace(workload, recipe=recipe.model_copy(update={"storage": storage}))
        cluster = hardware.cluster("cpu", num_cpus, recipe.train.execution, assume)
        return estimate(own, cluster, hardware.rank(cluster, "fp32", assume), assume)

    one, many = made(8), made(64)
    assert one.cluster.num_nodes == 1 and many.cluster.num_nodes == 8
    models = (len(recipe.bags.ratios) + 2) * 4 * workload.shape.parameters
    assert one.network["models to nodes for evaluation"] == pytest.approx(models)
    assert many.network["models to nodes for evaluation"] == pytest.approx(2 * models), "one task on each"
    remote = made(8, "s3://bucket/runs")
    assert remote.start - one.start == pytest.approx(one.storage["corpus"] / 0.5e9), (
        "a local one is not copied"
    )


def estimated(path: str | Recipe, num_gpus: int, overrides: dict[str, float]) -> Estimate:
    assume = Assumptions(overrides)
    workload = gather(Recipe.load(path) if isinstance(path, str) else path, None, assume)
    cluster = hardware.cluster("H100", num_gpus, workload.recipe.train.execution, assume)
    return estimate(workload, cluster, hardware.rank(cluster, "bf16", assume), assume)


FREE = {
    "train.start_seconds": 0,
    "train.finish_seconds": 0,
    "gpu.network": 1e30,
    "gpu.link": 1e30,
    "gpu.bandwidth": 1e30,
    "checkpoint.copy_bytes_per_second": 1e30,
    "host.launch_seconds": 0,
    "host.collate_seconds": 0,
    "host.tokenize_bytes_per_second": 1e30,
}


def test_with_free_networks_and_starts_time_is_flops_over_rate_and_the_schedule_is_trainings(billion):
    made = estimated(billion, 800, FREE)
    one, shape = made.bags[0], made.workload.shape
    forward = (256 * (0.15 * 512) + 2048 * (0.35 * 512)) * (2 * shape.multiplying)
    attention = (256 * (0.15 * 512) ** 2 + 2048 * (0.35 * 512) ** 2) * 4 * 2048 * 28
    assert one.ranks == 8, "so that a rank has 3 chunks of 16,384 tokens, and embeds two of them twice"
    assert one.step.flops == pytest.approx((4 + 2 / 3) * (forward + attention), rel=1e-3)
    assert one.step.seconds == pytest.approx(one.step.flops / one.ranks / (0.35 * 989e12), rel=1e-2)
    steps = [bag.steps for bag in made.bags]
    assert [bag.ranks for bag in made.bags] == best(steps, 800, 256).ranks
    calm = {**FREE, "spot.losses_per_node_hour": 0, "head.rank_start_seconds": 0}
    alone = forecast(made, Assumptions(calm))
    assert alone.makespan == pytest.approx(made.train) and alone.lost == 0 == alone.failures


def test_more_gpus_never_take_longer_and_failures_only_cost(billion):
    times = []
    for num_gpus in (100, 400, 1600):
        made = estimated(billion, num_gpus, {})
        seen = forecast(made, Assumptions({"spot.losses_per_node_hour": 0.1}), range(2))
        assert seen.makespan > made.train and seen.failures > 0
        times.append(made.train)
    assert times == sorted(times, reverse=True)


def test_a_slow_head_node_or_a_slow_merge_is_the_bottleneck(billion):
    made = estimated(billion, 4096, {})
    assert bottleneck(made, forecast(made, Assumptions(), range(1))) == "compute"
    slow = forecast(made, Assumptions({"head.call_seconds": 0.1}), range(1))
    assert slow.head_load > 1 and bottleneck(made, slow) == "head"
    crawling = estimated(billion, 4096, {"merge.bytes_per_second": 1e3})
    assert bottleneck(crawling, forecast(crawling, Assumptions(), range(1))) == "merge"


def test_the_head_node_answers_a_call_for_each_step_and_grows_with_each_bag(billion):
    made = estimated(billion, 800, {})
    assert head_memory(made, Assumptions({"head.ray_memory": 1000, "head.bag_memory": 1})) == 1100
    rates = {"head.call_seconds": 0.5, "head.cpus": 2, "head.rank_start_seconds": 0}
    load = forecast(made, Assumptions(rates | CALM), range(1)).head_load
    assert load == pytest.approx(0.5 / 2 * sum(bag.steps for bag in made.bags) / made.train)


def calibrated(path: str, values: dict[str, float]) -> Calibration:
    calibration = Calibration("A100-80", 16, values, "2026-01-01T00:00:00+00:00")
    store(Recipe.load(path), calibration)
    return calibration


def test_a_calibration_applies_to_the_processors_it_was_made_on(billion):
    calibration = calibrated(billion, {"rank.flops": 123e12})
    recipe = Recipe.load(billion)
    own, other = plan(recipe), plan(recipe, PlanOptions(gpu_type="H100"))
    assert own.calibration == calibration and other.calibration is None
    assert (own.estimate.cluster.gpu_type, own.estimate.cluster.num_gpus) == ("A100-80", 16)
    assert own.estimate.rank.flops == 123e12 and own.assumptions["rank.flops"].source == "calibrated"
    assert other.assumptions["rank.flops"].source == "gpu.flops x gpu.efficiency"
    assert "123 TFLOP/s  calibrated" in invoke(billion).output


def test_calibrated_values_reach_what_is_measured_before_the_cluster(billion):
    """Texts and the model's shape come first: they must not be assumed before the calibration is read."""
    calibrated(billion, {"data.query_fill": 0.5, "model.hidden": 77.0, "data.distinct": 0.5})
    made = plan(Recipe.load(billion), PlanOptions(overrides={"data.distinct": 1}))
    texts = made.estimate.workload.texts["web"]
    assert texts.texts == 256 + 2048, "an override has precedence over a calibrated value"
    assert texts.tokens == pytest.approx(256 * 0.5 * 512 + 2048 * 0.35 * 512, rel=1e-5)
    assert made.estimate.workload.shape.hidden == 77
    assert made.assumptions["data.query_fill"].source == "calibrated"


def test_each_calibrated_value_reaches_the_stages_that_it_is_of(make_recipe, minilm):
    recipe = make_recipe(minilm)
    stages = ("train", "merge", "evaluate", "embed")
    calm = PlanOptions(overrides=CALM)
    before = plan(recipe, calm).estimate
    for values, expected in [
        ({"rank.flops": 1e6}, {"train"}),
        ({"host.launch_seconds": 1.0}, {"train"}),
        ({"host.collate_seconds": 1.0}, {"train"}),
        ({"host.tokenize_bytes_per_second": 1.0}, {"train", "embed"}),
        ({"storage.bytes_per_second": 1.0}, {"train", "evaluate", "embed"}),
        ({"merge.bytes_per_second": 1.0}, {"merge"}),
        ({"evaluate.flops": 1.0}, {"evaluate"}),
        ({"evaluate.load_seconds": 1e3, "evaluate.start_seconds": 1e3}, {"evaluate", "embed"}),
        ({"rank.encode_flops": 1.0}, {"embed"}),
    ]:
        store(recipe, Calibration("cpu", before.cluster.num_gpus, values, "2026-01-01T00:00:00+00:00"))
        made = plan(recipe, calm).estimate
        assert {stage for stage in stages if getattr(made, stage) > getattr(before, stage)} == expected


def test_an_evaluation_on_gpus_uses_the_rate_of_gpus_and_divides_whole_tasks(make_recipe, minilm):
    recipe = make_recipe(minilm)
    on_gpus = recipe.evaluate.model_copy(update={"execution": EvaluateExecution(use_gpu=True)})
    recipe = recipe.model_copy(update={"evaluate": on_gpus})

    def seconds(num_gpus: int, **overrides: float) -> float:
        zero = {"evaluate.start_seconds": 0, "evaluate.load_seconds": 0, "evaluate.score_seconds": 100}
        options = PlanOptions(gpu_type="H100", num_gpus=num_gpus, overrides=zero | overrides)
        return plan(recipe, options).estimate.evaluate

    num_models = len(recipe.bags.ratios) + 2
    assert seconds(1) == pytest.approx(num_models * 2 * 100, rel=1e-3), "two tasks, one after another"
    assert seconds(num_models) == pytest.approx(200, rel=1e-3)
    assert seconds(num_models * 2) == pytest.approx(100, rel=1e-3) == seconds(num_models * 20)
    assert seconds(1, **{"evaluate.flops": 1.0}) > 1000 * seconds(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PlanOptions(gpu_type="H900"), r"'H900'.*H200, H100"),
        (PlanOptions(overrides={"gpu.efficency": 0.4}), r"gpu\.efficency: .*gpu\.efficiency\?"),
    ],
)
def test_options_that_no_plan_has_are_refused(billion, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        plan(Recipe.load(billion), options)
    assert not os.path.exists(tmp_path / "runs"), "a plan writes nothing"


def test_more_ranks_than_the_cluster_has_are_refused(make_recipe, minilm):
    recipe = make_recipe(minilm, train={"execution": {"num_workers": 4}})
    with pytest.raises(InputError, match=r"num_workers 4.* 3 ranks"):
        plan(recipe, PlanOptions(num_gpus=3))
    with pytest.raises(InputError, match=r"num_gpus 1: one rank takes 2 CPUs"):
        plan(make_recipe(minilm, train={"execution": {"resources_per_worker": {"CPU": 2}}}),
             PlanOptions(num_gpus=1))  # fmt: skip


def test_the_command_line_refuses_an_assumption_that_is_no_number(billion):
    result = invoke(billion, "--assume", "gpu.efficiency=high")
    assert result.exit_code == 2 and "'gpu.efficiency=high'" in result.output + result.stderr


def test_a_base_model_out_of_reach_needs_its_config(make_recipe, minilm, tmp_path):
    measured = plan(make_recipe(minilm))
    recipe = make_recipe(str(tmp_path / "missing"))
    with pytest.raises(ConfigNotFoundError, match=r"missing.*config_file.*model\.multiplying"):
        plan(recipe)
    config_file = os.path.join(minilm, "config.json")
    made = plan(recipe, PlanOptions(config_file=config_file))
    texts = made.estimate.workload.texts["docstring-to-code"]
    assert not texts.measured and measured.estimate.workload.texts["docstring-to-code"].measured
    assert made.estimate.workload.shape == measured.estimate.workload.shape
    assert [bag.steps for bag in made.estimate.bags] == [bag.steps for bag in measured.estimate.bags]
    with pytest.raises(NotFoundError, match=r"config_file .*nowhere\.json"):
        plan(recipe, PlanOptions(config_file=str(tmp_path / "nowhere.json")))
    refused = invoke(str(tmp_path / "recipe.yaml"))
    assert refused.exit_code == 1 and "--config FILE" in refused.output + refused.stderr


@pytest.mark.slow
def test_a_cluster_is_measured_with_the_recipe_in_miniature(ray_cluster, make_recipe, qwen3):
    recipe = make_recipe(qwen3)
    path = os.path.join(os.path.dirname(recipe.storage), "recipe.yaml")
    result = invoke(path, "--calibrate", "--steps", "3")
    assert result.exit_code == 0, result.output
    found = stored(recipe)
    assert found is not None and found.gpu_type == "cpu"
    assert found.num_gpus == ray.cluster_resources()["CPU"]
    assert os.listdir(recipe.root) == ["calibration.json"], "nothing of the miniature remains"
    for name, value in found.values.items():
        assert value > 0 or name == "evaluate.score_seconds", name
        assert re.search(rf"{name} .*calibrated", result.output), name
    assert 1e6 < found.values["rank.flops"] < 1e12 and found.values["train.start_seconds"] < 600

"""A plan from the command line: without Ray, for any cluster, and for corpora that would fill a disk."""

import os
import re

import pytest
import yaml
from click.testing import CliRunner

from boom_ray.cli import main
from boom_ray.data.batches import num_steps
from boom_ray.planner import hardware
from boom_ray.planner.assumptions import Assumptions
from boom_ray.planner.calibration import Calibration, store, stored
from boom_ray.planner.estimate import estimate
from boom_ray.planner.outlook import bottleneck, head_memory, outlook
from boom_ray.planner.plan import gather
from boom_ray.recipe import Recipe
from boom_ray.train.schedule import best


@pytest.fixture
def billion(tmp_path) -> str:
    """A recipe of 10^9 rows that lie nowhere, and a hundred bags."""
    values = {
        "name": "billion",
        "storage": str(tmp_path / "runs"),
        "base_model": {"path": "hf://Qwen/Qwen3-0.6B", "pooling": "lasttoken"},
        "data": {"tasks": [
            {"name": "web", "path": "s3://nowhere/web", "expected_rows": 999_999_000},
            {"name": "small", "path": "s3://nowhere/small", "expected_rows": 1000, "type": "classification"},
        ]},
        "bags": {"ratios": [5] * 100},
        "train": {"execution": {"num_workers": "auto", "use_gpu": True, "grad_cache": True,
                                "gradient_checkpointing": True}},
    }  # fmt: skip
    path = tmp_path / "billion.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def plan(*arguments: str):
    return CliRunner().invoke(main, ["plan", *arguments])


def test_a_billion_rows_are_counted_and_not_drawn(billion):
    result = plan(billion, "--gpus", "4096", "--price", "2", "--assume", "data.padding=0")
    assert result.exit_code == 0, result.output
    steps = num_steps([round(999_999_000 * 0.05), 50], Recipe.load(billion).train)
    assert "bag-100: 5 % of every task, 50,000,000 rows" in result.output
    assert f"{steps:,} steps" in result.output
    assert "at 2 an hour" in result.output and "data.padding" in result.output
    assert len(re.findall(r"\|.*#.*\|", result.output)) == 101, "a line for each bag and the merge"


def known_of(path: str, assume: Assumptions):
    return gather(Recipe.load(path), None, assume)


def estimated(path: str, num_gpus: int, given: dict[str, float]):
    assume = Assumptions({"data.padding": 0, **given})
    known = known_of(path, assume)
    cluster = hardware.cluster("H100", num_gpus, known.recipe.train.execution, assume)
    return estimate(known, cluster, hardware.rank(cluster, "bf16", assume), assume), assume


FREE = {
    "train.start_seconds": 0,
    "train.finish_seconds": 0,
    "gpu.network": 1e30,
    "gpu.link": 1e30,
    "gpu.bandwidth": 1e30,
    "disk.bytes_per_second": 1e30,
}


def test_with_free_networks_and_starts_time_is_operations_over_rate_and_the_schedule_is_trainings(billion):
    made, _ = estimated(billion, 800, FREE)
    one, shape = made.bags[0], made.known.shape
    forward = (256 * (0.15 * 512) + 2048 * (0.35 * 512)) * (2 * shape.multiplying)
    attention = (256 * (0.15 * 512) ** 2 + 2048 * (0.35 * 512) ** 2) * 4 * 2048 * 28
    assert one.step.flops == pytest.approx(5 * (forward + attention)), "3, one for each repeated forward pass"
    assert one.step.seconds == pytest.approx(one.step.flops / one.ranks / (0.35 * 989e12))
    steps = [bag.steps for bag in made.bags]
    assert [bag.ranks for bag in made.bags] == best(steps, 800, 256).ranks
    alone = outlook(made, Assumptions({**FREE, "spot.losses_per_node_hour": 0, "head.rank_start_seconds": 0}))
    assert alone.makespan == pytest.approx(made.train) and alone.lost == 0 == alone.failures


def test_more_gpus_never_take_longer_and_losses_only_cost(billion):
    times = []
    for num_gpus in (100, 400, 1600):
        made, _ = estimated(billion, num_gpus, {})
        seen = outlook(made, Assumptions({"spot.losses_per_node_hour": 0.1}), range(2))
        assert seen.makespan > made.train and seen.failures > 0
        times.append(made.train)
    assert times == sorted(times, reverse=True)


def test_a_slow_head_node_or_a_slow_merge_is_named(billion):
    made, _ = estimated(billion, 4096, {})
    assert bottleneck(made, outlook(made, Assumptions({}), range(1))) == "arithmetic"
    slow = outlook(made, Assumptions({"head.call_seconds": 0.1}), range(1))
    assert slow.head > 1 and bottleneck(made, slow) == "head"
    crawling, _ = estimated(billion, 4096, {"merge.bytes_per_second": 1e3})
    assert bottleneck(crawling, outlook(crawling, Assumptions({}), range(1))) == "merge"


def test_the_head_node_holds_a_controller_for_each_bag_side_by_side(billion):
    given = {"head.ray_memory": 1000, "head.controller_memory": 1}
    sizes = [head_memory(estimated(billion, num_gpus, {})[0], Assumptions(given)) for num_gpus in (1, 4096)]
    assert sizes == [1001, 1100]


def test_a_calibration_counts_for_the_processors_it_was_made_on(billion):
    recipe = Recipe.load(billion)
    store(recipe, Calibration("A100-80", 16, {"rank.flops": 123e12}, "2026-01-01T00:00:00+00:00"))
    own, other = plan(billion, "--assume", "data.padding=0"), plan(billion, "--gpu-type", "H100")
    assert own.exit_code == other.exit_code == 0, own.output + other.output
    assert "123 TFLOP/s  measured by --calibrate" in own.output and "16 A100-80" in own.output
    assert "measured by --calibrate" not in other.output


def test_what_cannot_be_planned_is_refused(billion, tmp_path):
    for arguments, message in [
        (["--gpu-type", "H900"], "--gpu-type H900: unknown; allowed: H200, H100"),
        (
            ["--assume", "gpu.efficency=0.4"],
            "gpu.efficency: this plan uses no such number; did you mean gpu.efficiency?",
        ),
        (["--assume", "gpu.efficiency=high"], "expected name=number"),
    ]:
        result = plan(billion, *arguments)
        assert result.exit_code == 1 and message in result.output + result.stderr
    assert not os.path.exists(tmp_path / "runs"), "a plan leaves nothing behind"


@pytest.mark.slow
def test_a_cluster_is_measured_with_the_recipe_in_miniature(ray_cluster, make_recipe, qwen3):
    recipe = make_recipe(qwen3)
    path = os.path.join(os.path.dirname(recipe.storage), "recipe.yaml")
    result = plan(path, "--calibrate", "--steps", "3")
    assert result.exit_code == 0, result.output
    found = stored(recipe)
    assert found is not None and found.gpu_type == "cpu" and found.num_gpus == 4
    assert os.listdir(recipe.root) == ["calibration.json"], "nothing of the miniature is left"
    for name, value in found.values.items():
        assert value > 0 or name == "evaluate.score_seconds", name
        assert re.search(rf"{name} .*measured by --calibrate", result.output), name
    assert 1e6 < found.values["rank.flops"] < 1e12 and found.values["train.start_seconds"] < 600

"""The distances between merged models, and the search for their best merge."""

import json
import math

import pytest
import torch
from click.testing import CliRunner

from boom_ray import artifacts
from boom_ray.cli import main
from boom_ray.evaluation.measure import find_tasks, measure, scores_of
from boom_ray.evaluation.protocol import EvaluationProtocol, Subject
from boom_ray.merge.distances import distances
from boom_ray.pipeline.merge_choice import SCALES
from tests.conftest import done
from tests.merge.test_actors import tensors_of, variant

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def models(published_qwen3, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [variant(published_qwen3, str(root / str(seed)), seed) for seed in (1, 2, 3)]


def test_angles_and_norms_equal_those_of_the_tensors(models, published_qwen3, tmp_path):
    file = tmp_path / "distances.json"
    arguments = ["merge", *models, "--out", str(tmp_path / "out"), "--base-model", published_qwen3]
    run = CliRunner().invoke(main, [*arguments, "--dtype", "float32", "--report", str(file)])
    assert run.exit_code == 0 and f"report: {file}, {tmp_path}/distances.png" in run.output
    report = json.loads(file.read_text())
    base = tensors_of(published_qwen3)
    deltas = [{n: t.double() - base[n].double() for n, t in tensors_of(m).items()} for m in models]
    names = list(base)
    layer = [name for name in names if name.startswith("layers.1.")]
    for entry, members in [
        (report["tensors"]["norm.weight"], ["norm.weight"]),
        (report["layers"]["layer 1"], layer),
        (report["all"], names),
    ]:
        vectors = [torch.cat([delta[name].flatten() for name in members]) for delta in deltas]
        assert entry["norms"] == pytest.approx([vector.norm().item() for vector in vectors], rel=1e-9)
        cosine = (vectors[0] @ vectors[2] / (vectors[0].norm() * vectors[2].norm())).item()
        assert entry["angles"][0][2] == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-6)
    assert (tmp_path / "distances.png").read_bytes().startswith(b"\x89PNG")


def test_an_input_without_direction_has_no_angle():
    report = distances(
        ["a", "b"], "deltas", {"layers.10.w": [[0.0, 0.0], [0.0, 4.0]], "layers.2.w": [[1, 0], [0, 1]]}
    )
    assert report["tensors"]["layers.10.w"]["angles"][0][1] is None
    assert list(report["layers"]) == ["layer 2", "layer 10"]
    assert report["all"]["angles"][0][1] == pytest.approx(90)


def test_a_search_publishes_its_choice_and_reports_it_on_other_tasks(models, published_qwen3, beir, tmp_path):
    target, development = str(tmp_path / "merged" / "best"), f"{beir}/in_domain"
    arguments = ["merge", *models, "--out", target, "--base-model", published_qwen3, "--dtype", "float32"]
    arguments += ["--search", "--data", development, "--trials", "2", "--scale", "auto"]
    refused = CliRunner().invoke(main, [*arguments, "--test", beir])
    assert refused.exit_code == 1 and "none contains the other" in refused.output
    output = done(*arguments, "--test", f"{beir}/out_of_domain")
    record = artifacts.verify(target)
    search, config = record.metrics.search, record.config.merge
    tried = [f"{name}-equal x{scale:g}" for name in ("multislerp", "karcher") for scale in SCALES]
    assert list(search.scores) == list(search.errors) == tried and f"chosen: {search.chosen}" in output
    assert search.chosen == f"{config.method}-equal x{config.scale:g}"
    assert search.development == artifacts.hash_tree(development)
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["best"]

    subject, protocol = Subject("best", target), EvaluationProtocol()
    by_hand = scores_of(measure([subject], find_tasks(development), protocol))["best"]
    assert by_hand["email"]["ndcg@10"] == pytest.approx(search.scores[search.chosen], abs=1e-6)
    assert list(record.metrics.evaluation) == ["merged", "multislerp-equal x1"]
    assert record.metrics.comparison.tasks.keys() == {"asyncio"}
    again = CliRunner().invoke(main, ["evaluate", target, "--data", development])
    assert again.exit_code == 1 and "was chosen on email" in " ".join(again.output.split()), again.output


def test_choices_without_tasks_to_choose_by_are_refused(models, tmp_path):
    for arguments in (
        ["--search"],
        ["--scale", "auto", "--base-model", models[0]],
        ["--data", str(tmp_path)],
    ):
        run = CliRunner().invoke(main, ["merge", *models, "--out", str(tmp_path / "out"), *arguments])
        assert run.exit_code == 1 and "development tasks (--data DIR)" in run.output, arguments

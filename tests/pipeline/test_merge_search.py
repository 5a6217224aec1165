"""The distances between merged models, and the choice of their scale or coefficients."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from boom_ray import artifacts
from boom_ray.cli import main
from boom_ray.errors import InputError
from boom_ray.evaluation.measure import find_tasks, measure, scores_of
from boom_ray.evaluation.protocol import EvaluationProtocol, Subject
from boom_ray.merge.check_inputs import check_inputs
from boom_ray.merge.distances import distances
from boom_ray.merge.method_coefficients import method_coefficients
from boom_ray.model import directory
from boom_ray.pipeline.candidate_task import CombinedEncoder, tensor_grams
from boom_ray.pipeline.merge_choice import SCALES
from boom_ray.pipeline.merge_search import SearchRequest, search
from boom_ray.pipeline.publish import merge_models
from boom_ray.recipe import Merge
from tests import texts
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


def test_a_candidate_in_memory_has_the_vectors_of_its_merge(models, published_qwen3, tmp_path):
    documents = [text for pair in texts.functions("email") for text in pair][:8]
    groups = {"embeddings": [1, 0, 0], "layers 0-0": [0, 2, 1], "layers 1-1": [1, 1, 1], "rest": [0, 0, 3]}
    for base, settings in (
        (published_qwen3, Merge(method="karcher", scale=1.5, dtype="float32")),
        (published_qwen3, Merge(method="linear", normalize=False, weights=groups, dtype="float32")),
        (None, Merge(method="linear", space="weights", weights=groups, dtype="float32")),
    ):
        target = str(tmp_path / f"{settings.method}-{settings.space}")
        _, merged = merge_models(models, target, base, settings)
        grams = tensor_grams(models, base)
        for name, products in merged.grams.items():
            assert np.allclose(grams[name], products, rtol=1e-9, atol=1e-12), name
        coefficients = method_coefficients(settings, check_inputs(models, base).models, grams)
        combined = CombinedEncoder(models, base, "cpu")
        other = combined.at({name: [0, 0, 1] for name in coefficients}).encode(documents)
        found = combined.at(coefficients).encode(documents)
        assert np.abs(found - directory.load_encoder(target).encode(documents)).max() < 1e-5
        assert np.abs(found - other).max() > 1e-3


def test_a_search_publishes_its_choice_and_reports_it_on_other_tasks(models, published_qwen3, beir, tmp_path):
    target, development = str(tmp_path / "merged" / "best"), f"{beir}/in_domain"
    arguments = ["merge", *models, "--out", target, "--base-model", published_qwen3, "--dtype", "float32"]
    arguments += ["--search", "--data", development, "--trials", "10"]
    refused = CliRunner().invoke(main, [*arguments, "--test", beir])
    assert refused.exit_code == 1 and "none contains the other" in refused.output
    output = done(*arguments, "--test", f"{beir}/out_of_domain")
    record = artifacts.verify(target)
    search = record.metrics.search
    tried = ["multislerp-equal", "karcher-equal", "linear-equal", *(f"search-{n}" for n in range(4, 11))]
    assert list(search.candidates) == list(search.scores) == list(search.errors) == tried
    assert f"chosen: {search.chosen}" in output and search.development == artifacts.hash_tree(development)
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["best"]
    drawn = [search.candidates[label].weights for label in tried[3:]]
    assert all(list(weights) == ["embeddings", "layers 0-0", "layers 1-1", "rest"] for weights in drawn)
    assert len({str(weights) for weights in drawn}) == len(drawn)

    subjects = []
    for label in dict.fromkeys([search.chosen, "search-7"]):
        own = search.candidates[label].model_dump()
        normalize = False if own["method"] == "linear" and own["weights"] != "equal" else None
        again = str(tmp_path / label)
        settings = Merge(**own, normalize=normalize, dtype="float32")
        digest = merge_models(models, again, published_qwen3, settings)[0].digest
        assert (digest == record.digest) == (label == search.chosen)
        subjects.append(Subject(label, again))
    for label, scores in scores_of(measure(subjects, find_tasks(development), EvaluationProtocol())).items():
        assert scores["email"]["ndcg@10"] == pytest.approx(search.scores[label], abs=1e-6)
    assert list(record.metrics.evaluation) == ["merged", "multislerp-equal"]
    assert record.metrics.comparison.tasks.keys() == {"asyncio"}
    again = CliRunner().invoke(main, ["evaluate", target, "--data", development])
    assert again.exit_code == 1 and "was chosen on email" in " ".join(again.output.split()), again.output


def test_a_chosen_scale_is_compared_with_scale_one(models, published_qwen3, beir, tmp_path):
    target = str(tmp_path / "best")
    arguments = ["merge", *models, "--out", target, "--base-model", published_qwen3, "--scale", "auto"]
    done(*arguments, "--data", f"{beir}/in_domain", "--test", f"{beir}/out_of_domain")
    metrics, config = artifacts.verify(target).metrics, artifacts.verify(target).config.merge
    assert list(metrics.search.scores) == [f"multislerp x{scale:g}" for scale in SCALES]
    assert metrics.search.chosen == f"multislerp x{config.scale:g}"
    assert metrics.search.candidates[metrics.search.chosen].scale == config.scale
    assert list(metrics.evaluation) == ["merged", "multislerp x1"]


def test_choices_without_tasks_to_choose_by_are_refused(models, tmp_path):
    for arguments in (
        ["--search"],
        ["--scale", "auto", "--base-model", models[0]],
        ["--data", str(tmp_path)],
    ):
        run = CliRunner().invoke(main, ["merge", *models, "--out", str(tmp_path / "out"), *arguments])
        assert run.exit_code == 1 and "development tasks (--data DIR)" in run.output, arguments


def test_a_method_without_coefficients_is_not_searched(models, published_qwen3, beir, tmp_path):
    request = SearchRequest(beir, trials=9)
    with pytest.raises(InputError, match="ties decides by element and has no coefficients to search"):
        search(models, str(tmp_path / "out"), published_qwen3, Merge(method="ties"), request)

"""Learned coefficients: their gradient, planted optima, and the merge that is published."""

import os
import shutil

import pytest
import torch

from boom_ray import artifacts
from boom_ray.api.evaluating import evaluate
from boom_ray.errors import InputError
from boom_ray.merge.check_inputs import check_inputs
from boom_ray.merge.layer_groups import group_of
from boom_ray.model import directory
from boom_ray.pipeline.learn.learner import Learned, Learner
from boom_ray.pipeline.learn.make import LearnOptions, merge_learned
from boom_ray.pipeline.learn.pairs import DevelopmentSet
from boom_ray.recipe import Merge
from tests import texts
from tests.conftest import done
from tests.merge.oracle import streamed
from tests.merge.test_actors import tensors_of, variant
from tests.merge.test_adapters import adapter, folded


def learner_of(models: list[str], base: str, data: str, num_steps: int, **settings) -> Learner:
    inputs = check_inputs(models, base)
    encoder = directory.load_encoder(inputs.directory)
    return Learner(inputs, Merge(**settings), encoder, DevelopmentSet.read(data), num_steps)


def result_of(learner: Learner) -> Learned:
    *_, found = learner.run()
    assert isinstance(found, Learned)
    return found


def test_weights_and_derivatives_are_those_of_dense_task_vectors(published_qwen3, beir, tmp_path):
    models = [
        variant(published_qwen3, str(tmp_path / "full"), 1),
        adapter(published_qwen3, str(tmp_path / "adapter"), 2, target_modules=["q_proj", "down_proj"]),
    ]
    learner = learner_of(models, published_qwen3, beir, 1)
    assert list(learner.start) == ["embeddings", "layers 0-0", "layers 1-1", "rest"]
    assert learner.start["embeddings"][1] == 0, "no adapter changes the embeddings"
    chosen = {group: [0.1 * number, 0.2] for number, group in enumerate(learner.start, 1)}
    (batch,) = learner.batches
    assert learner.loss(chosen) == pytest.approx(learner._backward(batch), rel=1e-5)
    base = tensors_of(published_qwen3)
    states = [tensors_of(models[0]), folded(published_qwen3, models[1])]
    derivatives = {group: torch.zeros(2, dtype=torch.float64) for group in chosen}
    for name, parameter in learner.encoder.transformer.named_parameters():
        group = group_of(name, chosen)
        deltas = [state[name].double() - base[name].double() for state in states]
        expected = base[name] + sum(c * delta for c, delta in zip(chosen[group], deltas, strict=True))
        assert torch.allclose(parameter.double(), expected, atol=1e-6), name
        derivatives[group] += torch.stack([(parameter.grad * delta).sum() for delta in deltas])
    found = learner.weights.gradients()
    for group, expected in derivatives.items():
        assert found[group].tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)


def test_relevant_documents_of_other_rows_and_the_query_itself_are_no_negatives(tmp_path):
    task = texts.write_beir(str(tmp_path / "task"), [("a", "A"), ("b", "B"), ("c", "C")])
    texts.write_jsonl(f"{task}/corpus.jsonl", [{"_id": i, "text": t} for i, t in
                      (("d0", "A"), ("d1", "B"), ("d2", "C"), ("q0", "a"))])  # fmt: skip
    with open(f"{task}/qrels/test.tsv", "a", encoding="utf-8") as file:
        file.write("q0\td1\t2\nq2\tq0\t1\nq1\td0\t0\n")
    (batch,) = DevelopmentSet.read(str(tmp_path)).epoch(0)
    row = {batch.texts[query]: number for number, query in enumerate(batch.queries)}
    positives = {(number, batch.texts[text]) for number, text in batch.positives}
    documents = {batch.texts[index] for index in batch.candidates[:, 0]}
    expected = {(row["a"], "A"), (row["a"], "B"), (row["a"], "a"), (row["b"], "B")}
    expected |= {(row["c"], "C"), (row["c"], "a")}
    assert positives == {pair for pair in expected if pair[1] in documents}
    assert not batch.is_query[batch.candidates].any() and batch.is_query[batch.queries].all()
    assert all((number, batch.texts[text]) in positives for number, (text,) in enumerate(batch.candidates))


def test_a_learned_merge_is_a_merge_by_groups_that_names_its_development_set(
    ray_cluster, published_qwen3, beir, tmp_path
):
    models = [variant(published_qwen3, str(tmp_path / str(seed)), seed) for seed in (1, 2)]
    target = str(tmp_path / "merged")
    arguments = ["merge", *models, "--base-model", published_qwen3, "--out", target, "--dtype", "float32"]
    arguments += ["--learn", "--data", f"{beir}/in_domain", "--learn-steps", "3"]
    done(*arguments, "--test", f"{beir}/out_of_domain")
    record = artifacts.verify(target)
    learning, weights = record.metrics.learning, record.config.merge.weights
    assert (learning.steps, learning.queries) == (3, 20) and learning.loss_after < learning.loss_before
    assert weights.keys() == learning.start.keys() == {"embeddings", "layers 0-0", "layers 1-1", "rest"}
    assert weights != learning.start
    settings = Merge(method="linear", normalize=False, weights=weights, dtype="float32")
    again = streamed(models, published_qwen3, settings, str(tmp_path / "again"))
    merged = tensors_of(target)
    assert merged.keys() == again.keys() and all(torch.equal(merged[name], again[name]) for name in merged)
    assert list(record.metrics.evaluation) == ["merged", "multislerp"]
    assert record.metrics.comparison.tasks.keys() == {"asyncio"}

    copy = str(tmp_path / "copy" / "email")
    shutil.copytree(os.path.join(beir, "in_domain", "email"), copy)
    with pytest.raises(InputError, match=rf"{target}: its merge was chosen on email"):
        evaluate([published_qwen3, target], copy)


def test_what_cannot_be_learned_is_refused(published_qwen3, beir, tmp_path):
    target, options = str(tmp_path / "out"), LearnOptions(beir, 1)
    for settings, base in (
        (Merge(method="ties"), published_qwen3),
        (Merge(space="weights"), None),
        (Merge(weights={"rest": [1, 1]}), published_qwen3),
    ):
        with pytest.raises(InputError, match="give base_model, weights that are the same for all layers"):
            merge_learned([published_qwen3] * 2, target, base, settings, options)
    other = texts.write_jsonl(
        str(tmp_path / "sts" / "test.jsonl"), [{"sentence1": "a", "sentence2": "b", "score": 1}]
    )
    with pytest.raises(InputError, match="has no retrieval task"):
        DevelopmentSet.read(os.path.dirname(other))

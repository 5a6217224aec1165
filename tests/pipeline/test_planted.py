"""Optima that are known, because models were trained or spoiled on purpose: learning and searching find them.

The optimum is a model that was trained on the development pairs until their loss vanished. A pretrained model
is none: of MiniLM with and without noise, some mixtures have a lower loss on a few pairs than MiniLM itself.
"""

import os
import shutil
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from boom_ray.evaluation.protocol import EvaluationProtocol
from boom_ray.pipeline.merge_choice import Development
from boom_ray.pipeline.merge_search import MergeSearch
from boom_ray.recipe import Merge
from tests import texts
from tests.pipeline.test_learn import learner_of, result_of

pytestmark = pytest.mark.slow

ALL = ["embeddings", "layers 0-0", "layers 1-1"]  # the last norm hardly changes a direction
State = dict[str, Tensor]


class Planted(NamedTuple):
    """A base model, changes of it, and development tasks of two domains.

    Attributes:
        good: Task vector of a model trained on the pairs of `here`.
        foreign: Of a model trained on the pairs of `there`.
        noise: As long as `good` in every tensor.
    """

    base: str
    here: str
    there: str
    good: State
    foreign: State
    noise: State

    def saved(self, target: str, *deltas: State) -> str:
        """The base model plus some task vectors."""
        shutil.copytree(self.base, target, ignore=shutil.ignore_patterns("*.safetensors", "artifact.json"))
        tensors = load_file(os.path.join(self.base, "model.safetensors"))
        for delta in deltas:
            tensors = {name: tensor + delta[name] for name, tensor in tensors.items()}
        save_file(tensors, os.path.join(target, "model.safetensors"), {"format": "pt"})
        return target


def trained(base: str, data: str, num_steps: int) -> State:
    """The task vector of a model that is trained on the pairs of a development set."""
    learner = learner_of([base], base, data, num_steps)
    before = load_file(os.path.join(base, "model.safetensors"))
    optimizer = torch.optim.Adam(learner.encoder.transformer.parameters(), 3e-3)
    for step, batch in enumerate(learner.batches):
        learner._backward(batch)
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / num_steps)
        optimizer.step()
        optimizer.zero_grad()
    learner.weights.close()
    after = dict(learner.encoder.transformer.named_parameters())
    return {name: after[name].detach() - tensor for name, tensor in before.items()}


def noise_like(task_vector: State) -> State:
    generator = torch.Generator().manual_seed(1)
    drawn = {name: torch.randn(delta.shape, generator=generator) for name, delta in task_vector.items()}
    return {name: delta * (task_vector[name].norm() / delta.norm()) for name, delta in drawn.items()}


@pytest.fixture(scope="module")
def planted(published_qwen3, tmp_path_factory):
    root = tmp_path_factory.mktemp("planted")
    pairs = {"here": list(texts.functions("email"))[:40], "there": list(texts.functions("asyncio"))[:40]}
    for name, own in pairs.items():
        texts.write_beir(str(root / name / "functions"), own)
    here, there = str(root / "here"), str(root / "there")
    good, foreign = (trained(published_qwen3, data, 60) for data in (here, there))
    return Planted(published_qwen3, here, there, good, foreign, noise_like(good))


def negated(delta: State) -> State:
    return {name: -tensor for name, tensor in delta.items()}


def test_a_spoiled_model_loses_its_weight(planted, tmp_path):
    models = [planted.saved(str(tmp_path / "good"), planted.good)]
    models.append(planted.saved(str(tmp_path / "spoiled"), planted.noise))
    learner = learner_of(models, planted.base, planted.here, 60)
    losses = [learner.loss(dict.fromkeys(learner.start, values)) for values in ([1, 0], [0, 0], [0, 1])]
    learned = result_of(learner)
    assert losses[0] < 0.01 and min(losses[1:]) > 3, "the optimum is the good model alone"
    assert learned.loss_before > 0.2 and learned.loss_after < 0.01
    coefficients = np.array([learned.coefficients[group] for group in ALL])
    start = np.array([learned.start[group] for group in ALL])
    assert (abs(start[:, 0] / start[:, 1] - 1) < 0.01).all(), "both have the same weight before"
    assert (coefficients[:, 1] < 0.1 * start[:, 1]).all() and (coefficients[:, 0] > 0.6).all()


@pytest.fixture(scope="module")
def three(planted, tmp_path_factory):
    """Two models whose mean is the good one, and one of another domain."""
    root = tmp_path_factory.mktemp("three")
    return [
        planted.saved(str(root / "one"), planted.good, planted.noise),
        planted.saved(str(root / "other"), planted.good, negated(planted.noise)),
        planted.saved(str(root / "foreign"), planted.foreign),
    ]


def test_a_model_of_another_domain_loses_its_weight_and_the_others_share_it(planted, three):
    losses = {}
    for name, data in (("here", planted.here), ("there", planted.there)):
        learner = learner_of(three, planted.base, data, 60)
        losses[name] = [
            learner.loss(dict.fromkeys(learner.start, values))
            for values in ([0.5, 0.5, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0])
        ]
        if name == "there":
            learner.weights.close()
            break
        learned = result_of(learner)
    assert losses["here"][0] < 0.01 and min(losses["here"][1:]) > 1, (
        "the optimum is the mean of the first two"
    )
    assert losses["there"][1] < 0.1 < losses["there"][0], "the third is good elsewhere"
    assert learned.loss_before > 2 and learned.loss_after < 0.02
    coefficients = np.array([learned.coefficients[group] for group in ALL])
    start = np.array([learned.start[group] for group in ALL])
    one, other, foreign = coefficients.T
    assert (foreign < 0.5 * start[:, 2]).all() and (foreign[1:] < 0.1 * start[1:, 2]).all()
    assert (abs(one - other) < 0.3).all() and (one + other > 0.6).all()


def test_a_search_finds_a_merge_close_to_the_optimum(ray_cluster, planted, three, tmp_path):
    development = Development(planted.here, EvaluationProtocol(), str(tmp_path / "measurements"))
    search = MergeSearch(three, planted.base, Merge(dtype="float32"), development)
    settings, metrics = search.run(60)
    equal = max(score for label, score in metrics.scores.items() if label.endswith("-equal"))
    assert metrics.scores[metrics.chosen] > equal + 0.05
    assert settings.method == "linear" and settings.weights == metrics.candidates[metrics.chosen].weights
    one, other, foreign = np.array([settings.weights[group] for group in ALL]).mean(0)
    assert foreign < 0.7 * min(one, other)

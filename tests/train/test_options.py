"""One run with many options of a recipe: LoRA, distillation, Matryoshka lengths, ZeRO-3, chunks."""

import json
import os
from typing import Any

import pytest
import torch
from transformers import AutoModel

from boom_ray import artifacts
from boom_ray.model import directory, files
from boom_ray.pipeline.training import train as train_recipe
from tests import texts

pytestmark = pytest.mark.usefixtures("ray_cluster")


def scored_rows(path: Any) -> str:
    """Rows with teacher scores, except every third row."""
    pairs = list(texts.functions("email"))[:24]
    rows: list[dict[str, Any]] = []
    for index, (text, code) in enumerate(pairs):
        row: dict[str, Any] = {"query": text, "pos": [code], "neg": [pairs[index - k][1] for k in (1, 2)]}
        if index % 3:
            row |= {"pos_scores": [2.0], "neg_scores": [1.0, -1.0]}
        rows.append(row)
    return texts.write_jsonl(str(path), rows)


@pytest.mark.slow
def test_adapters_are_trained_and_published_with_all_options(make_recipe, qwen3, tmp_path):
    train = {
        "batch_size": 8, "group_size": 3, "learning_rate": 1e-3, "precision": "fp32", "epochs": 2,
        "query_max_length": 64, "passage_max_length": 32, "distillation": "m3_kd", "matryoshka": [8, 16],
        "lora": {"rank": 3, "alpha": 6, "targets": ["q_proj", "down_proj"]},
        "execution": {"num_workers": 2, "resources_per_worker": {"CPU": 0.5}, "zero_stage": 3,
                      "gradient_checkpointing": True, "chunk_tokens": 128, "save_every_steps": 2},
    }  # fmt: skip
    data = {"tasks": [{"name": "scored", "path": scored_rows(tmp_path / "scored.jsonl")}]}
    recipe = make_recipe(qwen3, train=train, data=data, bags={"ratios": [100]}, evaluate={})
    (uri,) = train_recipe(recipe)

    record = artifacts.verify(uri)
    assert files.read_config(uri)["matryoshka_dimensions"] == [8, 16]
    assert {entry.dtype for entry in record.tensors.values()} == {"F32"} and len(record.tensors) == 8
    with open(os.path.join(uri, "metrics.jsonl"), encoding="utf-8") as file:
        steps = [json.loads(line) for line in file]
    assert len(steps) == record.metrics.training.step == 6 and all(step["grad_norm"] > 0 for step in steps)
    assert all(0 < step["truncated_fraction"] <= 1 for step in steps)
    assert None not in (record.metrics.training.check.before, record.metrics.training.check.after)

    base = AutoModel.from_pretrained(qwen3).state_dict()
    trained = directory.load_encoder(uri).transformer.state_dict()
    assert trained.keys() == base.keys()
    for name, weight in trained.items():
        change = weight - base[name]
        if "q_proj" in name or "down_proj" in name:
            values = torch.linalg.svdvals(change.double())
            assert values[0] > 1e-5 and values[3:].max() < 1e-4 * values[0], "the change has low rank"
        else:
            assert not change.any(), name

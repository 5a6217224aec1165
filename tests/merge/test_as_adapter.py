"""Adapters merged into an adapter: for us, peft and sentence-transformers, with its error stated."""

import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pydantic import ValidationError
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from boom_ray import artifacts
from boom_ray.cli import main
from boom_ray.errors import InputError
from boom_ray.merge.adapter_writer import write_adapter
from boom_ray.merge.as_adapter import adapter_rank, plan_adapter
from boom_ray.merge.merge_job import MergeJob, WrittenShard
from boom_ray.merge.settings import check_settings
from boom_ray.model import adapter as adapters
from boom_ray.model import directory
from boom_ray.recipe import Lora, Merge
from tests import texts
from tests.merge.oracle import streamed, textbook
from tests.merge.test_actors import tensors_of, variant
from tests.merge.test_adapters import adapter, folded, gpt2, published  # noqa: F401
from tests.merge.test_low_rank import job_of, updates


def written(job: MergeJob, base: str) -> list[WrittenShard]:
    """Write the weights and settings of an adapter without Ray."""
    _, shards = plan_adapter(job)
    os.mkdir(job.target)
    found = [write_adapter(job, shard, lambda written: None) for shard in shards]
    layers = {name.partition(".lora_")[0].removeprefix(adapters.PREFIX) for name in shards[0].tensors}
    rank = adapter_rank(job)
    adapters.write_config(job.target, Lora(rank=rank, alpha=rank), layers, base)
    return found


def test_an_adapter_of_the_sum_of_all_ranks_is_the_merge(published_qwen3, tmp_path):
    base = published_qwen3
    models = [published(base, str(tmp_path / f"bag-{seed}"), seed) for seed in (1, 2)]
    merged = streamed(models, base, Merge(dtype="float32"), str(tmp_path / "dense"))
    job = job_of(models, base, str(tmp_path / "exact"), dtype="float32", adapter_rank=9)
    (part,) = written(job, base)
    assert adapter_rank(job) == 8 and {error for _, error in part.truncation.values()} == {0.0}
    found = folded(base, job.target)
    assert all(torch.allclose(found[name], tensor, atol=1e-6) for name, tensor in merged.items())


def test_an_adapter_of_less_rank_states_its_error_and_loads_everywhere(
    ray_cluster, published_qwen3, tmp_path
):
    base, target = published_qwen3, str(tmp_path / "out")
    models = [published(base, str(tmp_path / f"bag-{seed}"), seed) for seed in (1, 2)]
    arguments = ["merge", *models, "--base-model", base, "--out", target, "--dtype", "float32"]
    run = CliRunner().invoke(main, [*arguments, "--as-adapter", "3"])
    assert run.exit_code == 0, run.output
    record, origin, found = artifacts.verify(target), tensors_of(base), folded(base, target)
    merged = streamed(models, base, Merge(dtype="float32"), str(tmp_path / "dense"))
    left = total = 0.0
    for name, tensor in merged.items():
        values = torch.linalg.svdvals((tensor - origin[name]).double().view(len(tensor), -1))
        left, total = left + values[3:].square().sum().item(), total + values.square().sum().item()
        error = (found[name] - tensor).double().norm().item()
        assert error == pytest.approx(values[3:].norm().item(), rel=1e-3, abs=1e-5), name
    assert 0.05 < record.config.merge.adapter_error == pytest.approx((left / total) ** 0.5, rel=1e-4)
    assert record.config.merge.adapter_rank == 3

    pieces = [text for pair in texts.functions("email") for text in pair][:4]
    encoder = directory.load_encoder(target)
    ours, untrained = encoder.encode(pieces), directory.load_encoder(base).encode(pieces)
    state = encoder.transformer.state_dict()
    assert all(torch.allclose(state[name], tensor, atol=1e-6) for name, tensor in found.items())
    assert np.abs(untrained - ours).max() > 1e-3
    assert np.abs(SentenceTransformer(target, device="cpu").encode(pieces) - ours).max() < 1e-5


def test_layers_that_store_in_out_are_written_as_peft_reads_them(gpt2, tmp_path):  # noqa: F811
    models = [
        adapter(gpt2, str(tmp_path / str(seed)), seed, target_modules=["c_attn", "c_fc"]) for seed in (1, 2)
    ]
    job = job_of(models, gpt2, str(tmp_path / "out"), dtype="float32", adapter_rank=8)
    written(job, gpt2)
    merged, base = folded(gpt2, job.target), load_file(os.path.join(gpt2, "model.safetensors"))
    changed = [name for name in base if job.is_low_rank(name)]
    assert len(changed) == 4
    for name in changed:
        models_of = [base[name].double() + update.T for update in updates(job, name)]
        expected = textbook("multislerp", models_of, job.weights, base[name])
        assert torch.allclose(merged[name].double(), expected, atol=1e-5)


def test_what_is_more_than_an_adapter_of_the_base_is_refused(published_qwen3, make_recipe, tmp_path):
    base = published_qwen3
    one, full = adapter(base, str(tmp_path / "one")), variant(base, str(tmp_path / "full"), 1)
    with pytest.raises(InputError, match=rf"{full}: is not an adapter"):
        plan_adapter(job_of([one, full], base, adapter_rank=4))
    for change, part in (
        ({"method": "ties"}, "ties decides by element"),
        ({"space": "weights"}, "base_model"),
    ):
        with pytest.raises(InputError, match=part):
            check_settings(Merge(adapter_rank=4, **change), 2, base)
    with pytest.raises(ValidationError, match=r"train\.lora"):
        make_recipe(base).model_validate(make_recipe(base).model_dump() | {"merge": {"adapter_rank": 4}})
    assert "adapter_rank" not in Merge().model_dump()

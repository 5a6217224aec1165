"""Task vectors that are LoRA products: Gram matrices and merges from the factors, against dense float64."""

import math
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from boom_ray.artifacts.tensors import create_file
from boom_ray.errors import InputError, StorageError
from boom_ray.merge import cut, stream
from boom_ray.merge.check_inputs import check_inputs
from boom_ray.merge.low_rank import Factors, truncate
from boom_ray.merge.merge_job import MergeJob
from boom_ray.merge.settings import resolve_weights
from boom_ray.merge.shards import Shard, slices
from boom_ray.merge.stream import TensorMerger
from boom_ray.merge.tensor_reader import TensorReader
from boom_ray.recipe import Merge
from tests.merge.oracle import FLOOR, streamed, textbook
from tests.merge.test_actors import tensors_of
from tests.merge.test_adapters import adapter

RANKS = (2, 4, 7)


@pytest.fixture(scope="module")
def adapters(published_qwen3, tmp_path_factory) -> list[str]:
    """Three adapters of different rank and scale; the second adapts other layers than the others."""
    root = tmp_path_factory.mktemp("adapters")
    targets = {0: ["q_proj", "down_proj"], 1: ["q_proj"], 2: ["q_proj", "down_proj"]}
    return [
        adapter(published_qwen3, str(root / str(n)), n, r=rank, lora_alpha=5 + n, target_modules=targets[n])
        for n, rank in enumerate(RANKS)
    ]


def job_of(models: list[str], base: str, target: str = "", **settings) -> MergeJob:
    checked, merge = check_inputs(models, base), Merge(**settings)
    return MergeJob(checked.models, checked.base, merge, resolve_weights(checked.models, merge), target)


def updates(job: MergeJob, name: str) -> list[torch.Tensor]:
    """The task vectors in float64, one dense product each."""
    found = []
    for model in job.inputs:
        low, place = model.adapter.get(name), model.places[name]
        if low is None:
            found.append(torch.zeros(place.shape, dtype=torch.float64))
            continue
        tensors = load_file(low.a.uri)
        found.append(low.scale * (tensors[low.b.name].double() @ tensors[low.a.name].double()))
    return found


def test_the_gram_matrix_of_factors_is_that_of_dense_task_vectors(adapters, published_qwen3):
    job = job_of(adapters, published_qwen3)
    names = [name for name in job.inputs[0].places if job.is_low_rank(name)]
    assert len(names) == 4 and {"q_proj", "down_proj"} == {name.split(".")[-2] for name in names}
    for name in names:
        factors = Factors.read([TensorReader(model) for model in job.inputs], name)
        dense = torch.stack([update.flatten() for update in updates(job, name)])
        expected = dense @ dense.T
        error = (factors.gram() - expected).norm() / expected.norm()
        assert error < 1e-10 and factors.rank == sum(RANKS) - RANKS[1] * ("down_proj" in name)


@pytest.mark.parametrize("method", ["linear", "multislerp", "karcher", "task_arithmetic", "model_stock"])
def test_a_merge_from_factors_is_that_of_the_textbook(method, adapters, published_qwen3, tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        settings = Merge(method=method, dtype=str(dtype).removeprefix("torch."), scale=0.7)
        merged = streamed(adapters, published_qwen3, settings, str(tmp_path / settings.dtype))
        job, base = job_of(adapters, published_qwen3, method=method), tensors_of(published_qwen3)
        for name in job.inputs[0].places:
            if job.is_low_rank(name):
                origin = base[name].double()
                models = [origin + update for update in updates(job, name)]
                expected = textbook(method, models, job.weights, origin, settings)
                floor = FLOOR[dtype] * expected.abs() + 1e-6 * expected.abs().max() * (dtype.itemsize < 4)
                assert bool(((merged[name].double() - expected).abs() <= floor).all()), name
            else:
                assert torch.equal(merged[name], base[name].to(dtype)), name


def test_slices_of_any_size_make_the_same_tensor(adapters, published_qwen3, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "OUTPUT_ELEMENTS", 1000)
    job = job_of(adapters, published_qwen3, str(tmp_path), dtype="float32")
    name = next(name for name in job.inputs[0].places if name.endswith("down_proj.weight"))
    shard, total = Shard("model.safetensors", [name], num_slices=3), job.num_elements(name)
    alone = stream.merge_shard(job, shard, lambda written: None)
    expected = load_file(tmp_path / shard.file)[name]
    parts = slices(total, 3, 100)
    found = [cut.partial_gram(job, name, start, count) for start, count in parts]
    gram = [[math.fsum(gram[i][j] for gram, _ in found) for j in range(3)] for i in range(3)]
    assert gram == alone.grams[name] and len(parts) == 3
    create_file(str(tmp_path / shard.file), job.declared([name]))
    for start, count in parts:
        cut.write_slice(job, shard, start, count, equal=False)
    assert torch.equal(load_file(tmp_path / shard.file)[name], expected)


def test_values_that_are_not_finite_are_refused(adapters, published_qwen3, tmp_path):
    bad = adapter(published_qwen3, str(tmp_path / "bad"), 5, target_modules=["q_proj"])
    weights = os.path.join(bad, "adapter_model.safetensors")
    tensors = load_file(weights)
    first = next(name for name in tensors if "lora_B" in name)
    tensors[first][0, 0] = float("nan")
    save_file(tensors, weights)
    with pytest.raises(InputError, match=rf"{bad}: tensor .*q_proj.weight has NaN"):
        streamed([*adapters, bad], published_qwen3, Merge(), str(tmp_path / "out"))


def test_a_damaged_base_is_named(adapters, published_qwen3, tmp_path):
    job = job_of(adapters, published_qwen3, dtype="float32")
    name = next(name for name in job.inputs[0].places if job.is_low_rank(name))
    assert job.base is not None and job.base.record is not None
    entry = job.base.record.tensors[job.base.places[name].name]
    entry.xxh3_128 = "0" * 32
    with TensorMerger(job) as merger, pytest.raises(StorageError, match=f"tensor {name} is damaged"):
        list(merger.merged(name, merger.pieces([name])))


@pytest.mark.parametrize("shape", [(40, 30, 12), (8, 30, 12), (40, 6, 12)])
def test_a_product_of_bounded_rank_is_the_closest(shape):
    rows, columns, total = shape
    torch.manual_seed(0)
    b, a = torch.randn(rows, total).double(), torch.randn(total, columns).double()
    values = torch.linalg.svdvals(b @ a)
    for rank in (1, 5, 11, 12, 15):
        found = truncate(b, a, rank)
        assert found.b.shape == (rows, rank) and found.a.shape == (rank, columns)
        error = (b @ a - found.b @ found.a).square().sum().item()
        assert error == pytest.approx(values[rank:].square().sum().item(), rel=1e-9, abs=1e-18)
        assert error == pytest.approx(found.squared_error, rel=1e-9, abs=1e-18)
        assert found.squared_norm == pytest.approx(values.square().sum().item())

"""Slices of a tensor, merged apart and written into one file, without Ray."""

import math
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from boom_ray import artifacts
from boom_ray.artifacts.tensors import create_file, read_places
from boom_ray.errors import StorageError
from boom_ray.merge import cut
from boom_ray.merge.inputs import MergeInput
from boom_ray.merge.merge_job import MergeJob
from boom_ray.merge.shards import Shard, slices
from boom_ray.merge.stream import merge_shard
from boom_ray.recipe import Merge

SHARD = Shard("model.safetensors", ["w"], num_slices=3)
SIZE = 200_000


def job_of(tmp_path, tensors: list[torch.Tensor]) -> MergeJob:
    inputs = []
    for number, tensor in enumerate(tensors):
        directory = tmp_path / str(number)
        directory.mkdir()
        uri = str(directory / "model.safetensors")
        save_file({"w": tensor}, uri)
        record = artifacts.Record(
            kind="model",
            name="m",
            version="1",
            fingerprint="f",
            tensors=artifacts.hash_tensors(str(directory), "model.safetensors"),
        )
        inputs.append(MergeInput(uri, read_places(uri), str(directory), record))
    os.makedirs(tmp_path / "out")
    settings = Merge(space="weights", dtype="float32")
    return MergeJob(inputs, None, settings, [0.5, 0.5], str(tmp_path / "out"))


@pytest.mark.parametrize("equal", [False, True])
def test_slices_make_the_file_of_one_worker(equal, tmp_path):
    torch.manual_seed(0)
    tensors = [torch.randn(SIZE)] * 2 if equal else [torch.randn(SIZE), torch.randn(SIZE)]
    job = job_of(tmp_path, tensors)
    parts = slices(SIZE, 3, 1 << 15)
    assert len(parts) == 3
    found = [cut.partial_gram(job, "w", start, count) for start, count in parts]
    assert [part for _, part in found] == [equal] * 3
    gram = [[math.fsum(gram[i][j] for gram, _ in found) for j in range(2)] for i in range(2)]
    sliced = MergeJob(job.inputs, None, job.settings, job.weights, job.target, {"w": gram})
    create_file(os.path.join(job.target, SHARD.file), job.declared(["w"]))
    for start, count in reversed(parts):
        cut.write_slice(sliced, SHARD, start, count, equal)
    written = cut.finish_file(sliced, SHARD, {"w"} if equal else set())
    merged = load_file(os.path.join(job.target, SHARD.file))["w"]
    alone = merge_shard(job, SHARD, lambda written: None)
    expected = load_file(os.path.join(job.target, SHARD.file))["w"]
    assert torch.allclose(merged, expected, rtol=1e-6, atol=0) and written.equal == alone.equal
    assert torch.equal(merged, tensors[0]) == equal


def test_a_damaged_input_is_named(tmp_path):
    job = job_of(tmp_path, [torch.randn(SIZE), torch.randn(SIZE)])
    with open(job.inputs[1].uri, "r+b") as file:
        file.seek(-3, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-3, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    cut.check_recorded(job, 0, "w")
    with pytest.raises(StorageError, match=f"{job.inputs[1].uri}: tensor w is damaged"):
        cut.check_recorded(job, 1, "w")

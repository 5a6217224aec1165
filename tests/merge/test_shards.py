"""The plan of output files, and reading and writing them."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from boom_ray import artifacts
from boom_ray.artifacts.tensors import read_places
from boom_ray.errors import BoomError
from boom_ray.merge.inputs import MergeInput
from boom_ray.merge.shard_writer import ShardWriter
from boom_ray.merge.shards import index_json, plan_shards, slices
from boom_ray.merge.tensor_reader import TensorReader
from boom_ray.model.adapter import LowRank

MIB = 1 << 20


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=6), st.integers(0, 900 * MIB), min_size=1, max_size=40
    ),
    st.integers(1, 9),
    st.integers(100 * MIB, 4096 * MIB),
    st.booleans(),
)
def test_every_tensor_is_in_one_file_and_work_is_balanced(sizes, num_workers, limit, can_cut):
    shards = plan_shards(sizes, num_workers, limit, can_cut)
    assert sorted(name for shard in shards for name in shard.tensors) == sorted(sizes)
    assert len({shard.file for shard in shards}) == len(shards)
    share = sum(sizes.values()) / num_workers
    for shard in shards:
        load = sum(sizes[name] for name in shard.tensors)
        assert load <= limit or len(shard.tensors) == 1
        if shard.num_slices > 1:
            assert can_cut and len(shard.tensors) == 1 and load / shard.num_slices <= share
        elif can_cut and len(shard.tensors) == 1:
            assert load <= max(1.25 * share, 64 * MIB)
    if len(shards) > 1:
        index = json.loads(index_json(shards, sizes))
        assert (
            index["metadata"]["total_size"] == sum(sizes.values())
            and index["weight_map"].keys() == sizes.keys()
        )


@given(st.integers(1, 10**7), st.integers(1, 9), st.sampled_from([1, 1024, 1 << 20]))
def test_slices_cover_a_tensor_once(num_elements, count, multiple):
    cut = slices(num_elements, count, multiple)
    assert [start for start, _ in cut] == [0, *(start + length for start, length in cut[:-1])]
    assert sum(length for _, length in cut) == num_elements and len(cut) <= count
    assert all(start % multiple == 0 for start, _ in cut)


def test_a_small_model_is_one_file_and_a_large_one_has_one_per_worker():
    assert [shard.file for shard in plan_shards({"a": MIB, "b": MIB}, 8, 4096 * MIB)] == ["model.safetensors"]
    files = [shard.file for shard in plan_shards({str(i): 100 * MIB for i in range(10)}, 3, 4096 * MIB)]
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


def test_a_streamed_file_is_read_by_safetensors_and_its_hashes_are_correct(tmp_path):
    tensors = {
        "a": torch.randn(7, 5),
        "b": torch.randn(3).bfloat16(),
        "c": torch.tensor(4),
        "d": torch.zeros(0, 2),
    }
    uri = str(tmp_path / "model.safetensors")
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
    shapes = {name: (names[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    writer = ShardWriter(uri, shapes)
    for name, tensor in tensors.items():
        flat = tensor.reshape(-1)
        writer.write(name, iter(flat.split(max(1, len(flat) // 2))))
    entry = writer.close()
    with safe_open(uri, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())
    assert entry == artifacts.hash_file(uri)
    assert writer.entries == artifacts.hash_tensors(str(tmp_path), "model.safetensors")


def test_ranges_are_read_from_their_offsets(tmp_path):
    tensors = {"a": torch.arange(100.0), "b": torch.arange(50).half()}
    save_file(tensors, tmp_path / "model.safetensors")
    reader = TensorReader(MergeInput(str(tmp_path), read_places(str(tmp_path)), str(tmp_path)))
    for name, start, count in [("a", 90, 10), ("b", 3, 4)]:
        target = torch.empty(count, dtype=reader.dtype_of(name))
        reader.read_into(target, name, start)
        assert torch.equal(target, tensors[name][start : start + count])


def test_threads_read_different_tensors_of_an_adapter_at_once(tmp_path):
    torch.manual_seed(0)
    factors = {f"{name}.{side}": torch.randn(8, 8) for name in "pq" for side in "ab"}
    save_file({"p": torch.randn(8, 8), "q": torch.randn(8, 8), **factors}, tmp_path / "model.safetensors")
    places = read_places(str(tmp_path))
    adapter = {name: LowRank(places[f"{name}.a"], places[f"{name}.b"], 2.0) for name in "pq"}
    reader = TensorReader(MergeInput(str(tmp_path), places, str(tmp_path), adapter=adapter))

    def read(name: str) -> torch.Tensor:
        target = torch.empty(64)
        reader.read_into(target, name, 0)
        return target

    alone = {name: read(name) for name in "pq"}
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(read, "pq" * 2000))
    assert all(torch.equal(alone["pq"[i % 2]], tensor) for i, tensor in enumerate(together))


@pytest.mark.parametrize(
    ("size", "message"),
    [(3, "truncated or not a safetensors"), (60, "truncated or not"), (250, "tensor b ends at")],
)
def test_a_truncated_file_is_named(tmp_path, size, message):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(10), "b": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BoomError, match=message):
        read_places(str(tmp_path))


def test_pickled_weights_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BoomError, match="never loaded"):
        read_places(str(tmp_path))

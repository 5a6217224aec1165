"""Fragments: what some processes store is what others read, whatever each holds."""

import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from boom_ray.artifacts.fragments import FragmentReader
from boom_ray.errors import StorageError
from boom_ray.train import fragments
from boom_ray.train.fragments import Fragment, Snapshot, fill

SIZES = {"a/one": 1, "a/two": 37, "b/two": 64}


def cut(values: dict[str, torch.Tensor], cuts: list[int]) -> list[list[Fragment]]:
    """The fragments of several ranks: tensors one behind the other, cut at the same places for all."""
    bounds = [0, *sorted(cuts), sum(SIZES.values())]
    ranks = []
    for low, high in itertools.pairwise(bounds):
        held, offset = [], 0
        for name, tensor in values.items():
            start, end = max(low, offset), min(high, offset + len(tensor))
            if start < end:
                part = tensor[start - offset : end - offset]
                held.append(Fragment(name, len(tensor), start - offset, part))
            offset += len(tensor)
        ranks.append(held)
    return ranks


def store(directory: str, ranks: list[list[Fragment]]) -> list[str]:
    files = []
    for rank, held in enumerate(ranks):
        if held:
            files.append(os.path.join(directory, f"rank-{rank}.safetensors"))
            with open(files[-1], "wb") as file:
                file.writelines(Snapshot(held))
    return files


def filled(like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, torch.nan) for name, tensor in like.items()}


CUTS = st.lists(st.integers(0, sum(SIZES.values())), max_size=5)


@settings(max_examples=30, deadline=None)
@given(stored=CUTS, read=CUTS)
def test_any_partition_is_read_as_any_other(tmp_path_factory, stored, read):
    values = {name: torch.randn(size) for name, size in SIZES.items()}
    found = filled(values)
    with FragmentReader(store(str(tmp_path_factory.mktemp("files")), cut(values, stored))) as reader:
        assert reader.sizes == SIZES
        for held in cut(found, read):
            fill(held, reader)
    assert all(torch.equal(found[name], values[name]) for name in values)


def test_ranges_of_one_request_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(fragments, "READ_ELEMENTS", 5)
    monkeypatch.setattr(fragments, "WRITTEN_BYTES", 12)
    values = {name: torch.randn(size) for name, size in SIZES.items()}
    found = filled(values)
    with FragmentReader(store(str(tmp_path), cut(values, [20, 50]))) as reader:
        fill([one for held in cut(found, []) for one in held], reader)
    assert all(torch.equal(found[name], values[name]) for name in values)


def test_a_snapshot_does_not_see_later_changes_and_is_a_safetensors_file(tmp_path):
    weights = torch.arange(6, dtype=torch.float32)
    snapshot = Snapshot([Fragment("weight/w", 6, 2, weights[2:])])
    weights.zero_()
    (tmp_path / "file.safetensors").write_bytes(b"".join(snapshot))
    loaded = load_file(tmp_path / "file.safetensors")
    assert {name: value.tolist() for name, value in loaded.items()} == {"weight/w@2": [2, 3, 4, 5]}


def test_gaps_overlaps_and_other_sizes_are_refused_by_name(tmp_path):
    values = torch.zeros(10)
    parts = [[Fragment("weight/w", 10, 0, values[:4])], [Fragment("weight/w", 10, 4, values[4:])]]
    files = store(str(tmp_path), parts)
    with pytest.raises(StorageError, match=r"rank-1\.safetensors: the fragment of weight/w begins .* 4; "):
        FragmentReader(files[1:])
    with pytest.raises(StorageError, match=r"rank-\d\.safetensors: .* 0; expected 4,"):
        FragmentReader([files[0], *files])
    with FragmentReader(files[:1]) as reader:
        with pytest.raises(StorageError, match=r"weight/w: 4 elements, in the model 10"):
            fill(parts[0], reader)
        with pytest.raises(StorageError, match=r"weight/v: 0 elements, in the model 10"):
            fill([parts[0][0]._replace(tensor="weight/v")], reader)
        with pytest.raises(StorageError, match=r"elements 2 to 6 of weight/w are not stored; stored are 4"):
            reader.read("weight/w", 2, 4)
    os.truncate(files[0], os.path.getsize(files[0]) - 1)
    with pytest.raises(StorageError, match=r"rank-0\.safetensors: truncated"):
        FragmentReader(files)


def test_a_range_is_read_from_all_files_that_hold_it(tmp_path):
    values = {"a/one": torch.zeros(1), "a/two": torch.arange(37.0), "b/two": torch.zeros(64)}
    with FragmentReader(store(str(tmp_path), cut(values, [5, 11, 30]))) as reader:
        assert np.array_equal(reader.read("a/two", 2, 33), np.arange(2, 35, dtype=np.float32))

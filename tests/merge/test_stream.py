"""The stream of pieces: each belongs to the tensor and the range that is merged."""

import os

import pytest
import torch
from safetensors.torch import save_file

from boom_ray.artifacts.tensors import read_places
from boom_ray.errors import InputError
from boom_ray.merge.inputs import MergeInput
from boom_ray.merge.merge_job import MergeJob
from boom_ray.merge.read_ahead import Piece, RingBuffer, read_ahead
from boom_ray.merge.stream import STREAMED_ELEMENTS, TensorMerger
from boom_ray.merge.tensor_reader import TensorReader
from boom_ray.recipe import Merge
from boom_ray.recipe.execution import MergeExecution
from tests.merge.oracle import SMALL

SIZE = 100_000


@pytest.fixture
def inputs(tmp_path) -> list[MergeInput]:
    """Two models with two tensors of one shape, so that only their names and offsets tell them apart."""
    found = []
    for number in range(2):
        torch.manual_seed(number)
        uri = os.path.join(tmp_path, f"{number}.safetensors")
        save_file({"a": torch.randn(SIZE), "b": torch.randn(SIZE)}, uri)
        found.append(MergeInput(uri, read_places(uri), str(tmp_path)))
    return found


def merger_of(inputs: list[MergeInput], memory_bytes: int) -> TensorMerger:
    execution = MergeExecution.model_construct(memory_bytes=memory_bytes)
    settings = Merge(space="weights", dtype="float32").model_copy(update={"execution": execution})
    return TensorMerger(MergeJob(inputs, None, settings, [0.5, 0.5], ""))


@pytest.mark.parametrize("memory_bytes", [1 << 30, SMALL], ids=["whole", "chunks"])
def test_pieces_of_another_tensor_are_refused(inputs, memory_bytes):
    message = r"expected Piece\(name='a', start=0.*read Piece\(name='b'"
    with merger_of(inputs, memory_bytes) as merger, pytest.raises(RuntimeError, match=message):
        list(merger.merged("a", merger.pieces(["b", "a"])))


def test_pieces_of_another_range_and_missing_pieces_are_refused(inputs):
    with merger_of(inputs, SMALL) as merger:
        assert merger.chunk < SIZE
        stream = merger.pieces(["a"])
        next(stream)
        with pytest.raises(RuntimeError, match=f"expected .*start=0,.*start={merger.chunk},"):
            list(merger.merged("a", stream))
        with pytest.raises(RuntimeError, match="read None"):
            list(merger.merged("a", iter([])))


def test_chunks_of_a_tensor_that_does_not_fit_are_small(inputs):
    with merger_of(inputs, 1 << 30) as merger:
        assert merger.chunk > STREAMED_ELEMENTS
        assert merger._chunk_of(merger.chunk) == merger.chunk
        assert merger._chunk_of(merger.chunk + 1) == STREAMED_ELEMENTS


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("memory_bytes", [1 << 30, SMALL], ids=["whole", "chunks"])
def test_a_tensor_that_is_equal_in_all_models_and_not_finite_is_refused(bad, memory_bytes, tmp_path):
    uris = [os.path.join(tmp_path, f"{number}.safetensors") for number in range(2)]
    tensor = torch.randn(SIZE)
    tensor[SIZE - 1] = bad
    for uri in uris:
        save_file({"a": tensor}, uri)
    equal = [MergeInput(uri, read_places(uri), str(tmp_path)) for uri in uris]
    message = f"{uris[0]}, {uris[1]}: tensor a has NaN or Inf"
    with merger_of(equal, memory_bytes) as merger, pytest.raises(InputError, match=message):
        list(merger.merged("a", merger.pieces(["a"])))


@pytest.mark.parametrize("num_pieces", [1, 2, 3])
def test_reading_ahead_keeps_order_and_values_in_any_memory(inputs, num_pieces):
    readers = [TensorReader(model) for model in inputs]
    order = [Piece(name, start, 999) for name in "ab" for start in range(0, SIZE - 999, 999)]
    read = []
    for piece, pieces in read_ahead(order, readers, num_pieces * 2 * (999 * 4 + 64)):
        read.append(piece)
        for reader, found in zip(readers, pieces, strict=True):
            expected = torch.empty(999)
            reader.read_into(expected, piece.name, piece.start)
            assert torch.equal(found, expected)
    assert read == order


def test_a_ring_buffer_never_hands_out_memory_twice():
    ring = RingBuffer(1000)
    first, second = ring.take(400), ring.take(400)
    assert first is not None and second is not None and ring.take(400) is None
    ring.give_back()
    third = ring.take(300)
    assert third is not None and third.data_ptr() == first.data_ptr()
    assert ring.take(200) is None, "the second piece begins at 448"
    ring.give_back()
    assert ring.take(600) is not None
